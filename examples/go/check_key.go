// Command check_key asks Tollgate whether the API key on standard input may read tasks, as a service would for each
// request.
//
// Once, in this folder, with protoc, protoc-gen-go and protoc-gen-go-grpc:
//
//	go mod init example.com/check
//	map() {
//	  for f in key types usage; do echo "--$1_opt=Mtollgate/v1/$f.proto=example.com/check/tollgatev1"; done
//	  for f in annotations field_behavior http; do
//	    echo "--$1_opt=Mgoogle/api/$f.proto=google.golang.org/genproto/googleapis/api/annotations"
//	  done
//	}
//	protoc -I ../../proto $(map go) --go_out=. --go_opt=module=example.com/check \
//	  $(map go-grpc) --go-grpc_out=. --go-grpc_opt=module=example.com/check \
//	  tollgate/v1/key.proto tollgate/v1/types.proto tollgate/v1/usage.proto
//	go mod tidy
//
// Then, with the caller's own key, which holds the scope `tollgate:check`, in TOLLGATE_TOKEN:
//
//	echo "$KEY" | go run .
package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"example.com/check/tollgatev1"
)

// checkKey says whether a key may read tasks. An error is no admission.
func checkKey(ctx context.Context, client tollgatev1.KeyServiceClient, token, key string) (*tollgatev1.CheckKeyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	return client.CheckKey(ctx, &tollgatev1.CheckKeyRequest{Key: key, AllOf: []string{"tasks:read"}})
}

func main() {
	addr := cmp.Or(os.Getenv("TOLLGATE_ADDR"), "127.0.0.1:50051")
	// One connection for the life of the process: it reconnects by itself.
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	key, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}

	client := tollgatev1.NewKeyServiceClient(conn)
	answer, err := checkKey(context.Background(), client, os.Getenv("TOLLGATE_TOKEN"), strings.TrimSpace(key))
	switch {
	case err != nil:
		log.Fatalf("not known, HTTP 503: %v", err)
	case answer.GetAllowed():
		fmt.Printf("allowed: %s of %s\n", answer.GetKeyName(), answer.GetAccountId())
	default:
		fmt.Printf("denied, HTTP %d: %s\n", answer.GetHttpStatus(), answer.GetMessage())
	}
}

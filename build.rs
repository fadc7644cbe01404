//! Compiles the protos, without protoc, into messages, services and the descriptor set that reflection serves.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

/// Options only: no message of ours has a field of a type defined there.
const OPTIONS_ONLY: [&str; 4] = [
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/protobuf/descriptor.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files([
        "tollgate/v1/key.proto",
        "tollgate/v1/account.proto",
        "tollgate/v1/plan.proto",
        "envoy/service/auth/v3/external_auth.proto",
        "envoy/service/ratelimit/v3/rls.proto",
    ])?;

    // Written by protox itself, because prost's own types drop the google.api options.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("tollgate.bin"), compiler.encode_file_descriptor_set())?;

    let encoded = compiler.encode_file_descriptor_set();
    let mut files = prost_types::FileDescriptorSet::decode(encoded.as_slice())?;
    files.file.retain(|file| !OPTIONS_ONLY.contains(&file.name()));
    for file in &mut files.file {
        file.dependency.retain(|name| !OPTIONS_ONLY.contains(&name.as_str()));
    }
    tonic_prost_build::configure().btree_map(".").emit_rerun_if_changed(false).compile_fds(files)?;
    Ok(())
}

# The commands of a developer's day; `make` alone lists them. What they need beyond cargo is installed by scripts/tools.sh.

.DEFAULT_GOAL := help
.PHONY: help run test mutants soak lint fmt bench fuzz clean-tools

# What follows the command it belongs to: `make test ARGS=check_key`, `make bench ARGS=--help`.
ARGS ?=

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and start a server for development
	cargo run --release -- serve --dev $(ARGS)

test: ## Run every test, after installing the tools they use (ARGS: the test runner's)
	scripts/test $(ARGS)

mutants: ## See that the tests of replicas miss each guard that is taken away
	scripts/with-tools scripts/mutants $(ARGS)

soak: ## Kill a server under load a thousand times (KILLS: how often)
	TOLLGATE_TEST_KILLS=$(or $(KILLS),1000) cargo test --test crash_limits --test crash_operations -- --nocapture

lint: ## Check formatting, clippy, docs, dependencies, protos and scripts
	scripts/lint

fmt: ## Format the Rust code and the protos
	scripts/fmt

bench: ## Measure, and compare with what is measured beside it (ARGS: those of benches/run.py)
	scripts/with-tools python benches/run.py $(ARGS)

fuzz: ## Fuzz for a minute each target (ARGS: targets; FUZZ_SECONDS: how long)
	scripts/fuzz $(ARGS)

clean-tools: ## Remove the tools under target/; what cargo and Debian installed stays
	rm -rf target/tools target/venv

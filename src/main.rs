//! The binary `tollgate`: everything is in the library.

use std::process::ExitCode;

/// 8 % faster than glibc's on the hot path, and memory that is freed goes back to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollgate::cli::main()
}

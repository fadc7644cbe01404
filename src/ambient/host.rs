//! What the machine is called.

/// Its name, for people. Two machines may have one name.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

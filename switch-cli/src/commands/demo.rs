//! `vswitch demo`.
/// Runs the demonstration.
pub fn demo() -> anyhow::Result<()> {
    Ok(())
}

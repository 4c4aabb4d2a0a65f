//! placeholder
use crate::{Outcome, args::Args};
pub(crate) fn main(args: Args) -> Outcome {
    args.finish()
}
pub(crate) fn bench(args: Args) -> Outcome {
    let _ = args.rest();
    Ok(())
}

//! Command-line arguments.

use std::str::FromStr;

/// The words that are not used yet.
pub(crate) struct Args(Vec<String>);

impl Args {
    pub(crate) fn new(words: impl Iterator<Item = String>) -> Self {
        Self(words.collect())
    }

    /// Takes the first word.
    pub(crate) fn command(&mut self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Takes `name`, if it is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|word| word == name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// Takes `name VALUE` or `name=VALUE`, if it is there.
    pub(crate) fn option<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, String>
    where
        T::Err: std::fmt::Display,
    {
        let prefix = format!("{name}=");
        let text = if let Some(at) = self.0.iter().position(|word| word.starts_with(&prefix)) {
            self.0.remove(at)[prefix.len()..].to_owned()
        } else if let Some(at) = self.0.iter().position(|word| word == name) {
            if at + 1 == self.0.len() {
                return Err(format!("{name} takes a value"));
            }
            self.0.remove(at);
            self.0.remove(at)
        } else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|e| format!("{name} {text}: {e}"))
    }

    /// The rest, to be passed on.
    pub(crate) fn rest(self) -> Vec<String> {
        self.0
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some(word) => Err(format!("unknown argument {word:?}; `cargo xtask help` lists them")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &str) -> Args {
        Args::new(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_taken_in_both_forms_and_what_is_left_is_refused() {
        let mut args = args("run --tokens 5 --backend=cuda:1 --full extra");
        assert_eq!(args.command().as_deref(), Some("run"));
        assert_eq!(args.option::<usize>("--tokens"), Ok(Some(5)));
        assert_eq!(args.option::<String>("--backend"), Ok(Some("cuda:1".into())));
        assert!(args.flag("--full") && !args.flag("--full"));
        assert!(args.finish().unwrap_err().contains("extra"));
    }

    #[test]
    fn a_bad_or_missing_value_names_its_option() {
        assert!(args("--tokens many").option::<usize>("--tokens").unwrap_err().starts_with("--tokens many"));
        assert_eq!(args("--tokens").option::<usize>("--tokens"), Err("--tokens takes a value".into()));
    }
}

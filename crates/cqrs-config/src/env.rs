//! [`Env`]: the settings in environment variables of one prefix, read by every client's `from_env`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::{Pem, Secret, TextList, TlsConfig, parse_duration};

/// A value read from the text of a variable.
pub trait Variable: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// The expected form; never the text, which may be a secret.
    fn from_variable(text: &str) -> Result<Self, String>;
}

/// The environment variables with a prefix, such as `KAFKA_`. An empty variable counts as not set.
///
/// Errors are collected: [`finish`](Self::finish) names all wrong variables at once.
#[derive(Debug)]
pub struct Env {
    prefix: &'static str,
    vars: BTreeMap<String, Secret>,
    /// Names of variables whose values are not UTF-8. They are errors once they are read.
    not_utf8: BTreeSet<String>,
    known: BTreeSet<String>,
    open: Vec<&'static str>,
    wrong: Vec<String>,
}

impl Env {
    /// The variables of the process.
    pub fn new(prefix: &'static str) -> Self {
        Self::from_vars(prefix, std::env::vars_os())
    }

    /// These variables.
    pub fn from_vars(
        prefix: &'static str,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut env = Self {
            prefix,
            vars: BTreeMap::new(),
            not_utf8: BTreeSet::new(),
            known: BTreeSet::new(),
            open: Vec::new(),
            wrong: Vec::new(),
        };
        for (name, value) in vars {
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else {
                continue;
            };
            match value.into_string() {
                Ok(value) => drop(env.vars.insert(name.to_owned(), value.into())),
                Err(_not_shown) => drop(env.not_utf8.insert(name.to_owned())),
            }
        }
        env
    }

    /// The text of a variable, also if that is empty.
    pub fn text_or_empty(&mut self, name: &str) -> Option<String> {
        if self.not_utf8.remove(name) {
            self.refuse(name, "it is not UTF-8");
        }
        self.known.insert(name.to_owned());
        self.vars.get(name).map(|text| text.expose().to_owned())
    }

    /// The value of a variable, if that is set and right.
    pub fn get<T: Variable>(&mut self, name: &str) -> Option<T> {
        let text = self.text_or_empty(name).filter(|text| !text.trim().is_empty())?;
        T::from_variable(&text).map_err(|wrong| self.refuse(name, &wrong)).ok()
    }

    /// Sets a field to the value of a variable, if that is set and right.
    pub fn read<T: Variable>(&mut self, name: &str, field: &mut T) {
        if let Some(value) = self.get(name) {
            *field = value;
        }
    }

    /// Likewise; a variable that is not set is an error that shows the form.
    pub fn require<T: Variable>(&mut self, name: &str, field: &mut T, form: &str) {
        match self.is_set(name) {
            true => self.read(name, field),
            false => self.refuse(name, &format!("it is not set; expected {form}")),
        }
    }

    /// Likewise, for a duration with a minimum.
    pub fn read_timeout(&mut self, name: &str, field: &mut Duration, minimum: Duration) {
        match self.get(name) {
            Some(value) if value < minimum => {
                self.refuse(name, &format!("{value:?} is below the minimum of {minimum:?}"));
            }
            Some(value) => *field = value,
            None => {}
        }
    }

    /// Reads `TLS_CA`, `TLS_CLIENT_CERTIFICATE`, `TLS_CLIENT_KEY` and `TLS_CLIENT_KEY_PASSWORD`.
    pub fn read_tls(&mut self, tls: &mut TlsConfig) {
        self.read("TLS_CA", &mut tls.ca);
        self.read("TLS_CLIENT_CERTIFICATE", &mut tls.client_certificate);
        self.read("TLS_CLIENT_KEY", &mut tls.client_key);
        self.read("TLS_CLIENT_KEY_PASSWORD", &mut tls.client_key_password);
    }

    /// The variables that begin with `start`, without it.
    pub fn all_of(&mut self, start: &'static str) -> Vec<(String, Secret)> {
        self.open.push(start);
        let of_start = |(name, value): (&String, &Secret)| {
            let name = name.strip_prefix(start).filter(|_| !value.expose().is_empty())?;
            Some((name.to_owned(), value.clone()))
        };
        self.vars.iter().filter_map(of_start).collect()
    }

    /// True if the variable is set and not empty.
    pub fn is_set(&self, name: &str) -> bool {
        self.not_utf8.contains(name)
            || self.vars.get(name).is_some_and(|text| !text.expose().trim().is_empty())
    }

    /// Adds an error; `wrong` must not show the value.
    pub fn refuse(&mut self, name: &str, wrong: &str) {
        self.known.insert(name.to_owned());
        self.wrong.push(format!("{}{name}: {wrong}", self.prefix));
    }

    /// Ends the reading. Variables of the prefix that nobody read are logged as warnings, once in a
    /// process, each with the nearest known name.
    ///
    /// # Errors
    /// One text for all wrong variables, with their names and never their values.
    pub fn finish(self) -> Result<(), String> {
        static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        for (name, nearest) in self.unknown() {
            let prefix = self.prefix;
            let full = format!("{prefix}{name}");
            let is_new = WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(full);
            if is_new {
                let hint = nearest.map(|nearest| format!("; did you mean {prefix}{nearest}?"));
                let hint = hint.unwrap_or_default();
                tracing::warn!(
                    "the environment variable {prefix}{name} is not known and ignored{hint}"
                );
            }
        }
        match self.wrong.is_empty() {
            true => Ok(()),
            false => Err(self.wrong.join("; ")),
        }
    }

    /// The names that nobody read, each with the known one that it may be a misspelling of. Those that container platforms set
    /// for a service of this name (`KAFKA_PORT`, `KAFKA_SERVICE_HOST`) are left out.
    fn unknown(&self) -> Vec<(&str, Option<&str>)> {
        let is_link = |name: &str| name.split('_').any(|word| matches!(word, "PORT" | "SERVICE"));
        let unknown = |name: &&String| {
            !self.known.contains(*name)
                && !self.open.iter().any(|start| name.starts_with(start))
                && !is_link(name)
        };
        // Names that share less than this are different names, not misspelt ones.
        let nearest = |name: &str| {
            let likeness = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
            let known = self.known.iter().map(|known| (likeness(known), &**known));
            let (likeness, nearest) = known.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
            (likeness > 0.6).then_some(nearest)
        };
        self.vars.keys().filter(unknown).map(|name| (&**name, nearest(name))).collect()
    }
}

/// Reads the variables that are named like fields of a configuration: `tls.ca` is `TLS_CA`.
#[macro_export]
macro_rules! read_fields {
    ($env:ident, $config:ident: $($field:ident$(.$inner:ident)?),+ $(,)?) => {$(
        let name = concat!(stringify!($field), $("_", stringify!($inner))?).to_uppercase();
        $env.read(&name, &mut $config.$field$(.$inner)?);
    )+};
}

impl Variable for String {
    fn from_variable(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Variable for bool {
    fn from_variable(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("expected true or false".into()),
        }
    }
}

impl Variable for Duration {
    fn from_variable(text: &str) -> Result<Self, String> {
        parse_duration(text).map_err(Into::into)
    }
}

impl Variable for Secret {
    fn from_variable(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }
}

impl Variable for Pem {
    fn from_variable(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }
}

/// A text with commas.
impl Variable for Vec<String> {
    fn from_variable(text: &str) -> Result<Self, String> {
        Ok(TextList::from(text).into())
    }
}

impl<T: Variable> Variable for Option<T> {
    fn from_variable(text: &str) -> Result<Self, String> {
        T::from_variable(text).map(Some)
    }
}

macro_rules! whole_number {
    ($($number:ty),+) => {$(
        impl Variable for $number {
            fn from_variable(text: &str) -> Result<Self, String> {
                let expected = || format!("expected a whole number from 0 to {}", <$number>::MAX);
                text.trim().parse().map_err(|_shows_no_range| expected())
            }
        }
    )+};
}

whole_number!(u16, u32, usize);

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Env {
        Env::from_vars("X_", vars.iter().map(|&(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn each_form_is_read_and_an_empty_one_is_not_set() {
        let mut env = env(&[
            ("X_WAIT", "1m 30s"),
            ("X_ON", "1"),
            ("X_COUNT", " 7 "),
            ("X_LIST", "a, b"),
            ("X_TLS_CA", "/ca.pem"),
            ("X_TLS_CLIENT_KEY_PASSWORD", "hush"),
            ("X_NAME", ""),
            ("X_RAW_A_B", "c"),
            ("Y_COUNT", "x"),
        ]);
        assert_eq!(env.get("WAIT"), Some(Duration::from_secs(90)));
        assert_eq!((env.get("ON"), env.get("COUNT")), (Some(true), Some(7_u16)));
        assert_eq!(env.get("LIST"), Some(vec!["a".to_owned(), "b".to_owned()]));
        let mut tls = TlsConfig::new();
        env.read_tls(&mut tls);
        assert_eq!(tls, TlsConfig::new().with_ca("/ca.pem").with_client_key_password("hush"));
        assert_eq!((env.get::<String>("NAME"), env.text_or_empty("NAME")), (None, Some("".into())));
        assert_eq!(env.all_of("RAW_"), [("A_B".to_owned(), "c".into())]);
        assert_eq!(env.unknown(), []);
        assert_eq!(env.finish(), Ok(()));
    }

    #[test]
    fn all_wrong_variables_are_named_at_once_and_unseen() {
        let mut env = env(&[
            ("X_WAIT", "30"),
            ("X_TEXT_WAIT", "s3cret"),
            ("X_SHORT", "30ms"),
            ("X_ON", "s3cret"),
            ("X_COUNT", "s3cret"),
            ("X_LARGE", "70000"),
        ]);
        env.get::<Duration>("WAIT");
        env.get::<Duration>("TEXT_WAIT");
        let mut timeout = Duration::ZERO;
        env.read_timeout("SHORT", &mut timeout, crate::MIN_TIMEOUT);
        env.get::<bool>("ON");
        env.get::<usize>("COUNT");
        env.get::<u16>("LARGE");
        env.require("DSN", &mut String::new(), "amqp://host");
        assert!(!format!("{env:?}").contains("s3cret"), "{env:?}");
        let error = env.finish().unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
        for words in [
            "X_WAIT: a number without a unit",
            "X_TEXT_WAIT: expected a duration such as \"30s\"",
            "X_SHORT: 30ms is below the minimum of 100ms",
            "X_ON: expected true or false",
            "X_COUNT: expected a whole number from 0 to",
            "X_LARGE: expected a whole number from 0 to 65535",
            "X_DSN: it is not set; expected amqp://host",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn unknown_variable_has_a_known_name_like_it() {
        let mut env = env(&[
            ("X_LOGLEVEL", "x"),
            ("X_HEAP_OPTS", "x"),
            ("X_PUBLISH_TIMEOUT_MS", "x"),
            ("X_LOG_LEVEL", "x"),
            ("X_RAW_ANY", "x"),
            ("X_PORT", "tcp://10.0.0.1:9092"),
            ("X_PORT_9092_TCP_ADDR", "10.0.0.1"),
            ("X_SERVICE_HOST", "10.0.0.1"),
        ]);
        for name in ["LOG_LEVEL", "LINGER", "PUBLISH_TIMEOUT", "RAW"] {
            env.get::<String>(name);
        }
        env.all_of("RAW_");
        let unknown = [
            ("HEAP_OPTS", None),
            ("LOGLEVEL", Some("LOG_LEVEL")),
            ("PUBLISH_TIMEOUT_MS", Some("PUBLISH_TIMEOUT")),
        ];
        assert_eq!(env.unknown(), unknown);
        assert_eq!(env.finish(), Ok(()));
    }

    #[cfg(unix)]
    #[test]
    fn secret_that_is_not_utf_8_is_refused_unseen() {
        use std::os::unix::ffi::OsStringExt;
        let password = OsString::from_vec(b"hush\xff".to_vec());
        let vars = [("X_PASSWORD".into(), password.clone()), ("X_OTHERS".into(), password)];
        let mut env = Env::from_vars("X_", vars);
        assert_eq!(env.get::<Secret>("PASSWORD"), None);
        // The variable of another program does not matter.
        assert_eq!(env.finish().unwrap_err(), "X_PASSWORD: it is not UTF-8");
    }
}

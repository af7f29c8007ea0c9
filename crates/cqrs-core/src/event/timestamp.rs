//! A point in time as events and headers carry it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// A point in time, in microseconds since 1970-01-01 UTC, between the years 0 and 9999.
///
/// Written as RFC 3339 in UTC with six fraction digits, or none when the fraction is zero:
/// `2024-01-02T03:04:05.678901+00:00`, python-cqrs's form. Read with any offset, with `Z`, or with
/// none, which is taken as UTC; an offset may lack its colon or its minutes (`+0300`, `+03`, as Jackson and
/// PostgreSQL write it); fraction digits beyond the sixth are cut.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 date and time.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a date and time such as 2024-01-02T03:04:05.678901+00:00")]
pub struct InvalidTimestamp;

crate::error_debug!(InvalidTimestamp);

impl Timestamp {
    const MIN_MICROS: i64 = -62_167_219_200_000_000;
    const MAX_MICROS: i64 = 253_402_300_799_999_999;

    /// The present time, cut to microseconds.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// The time `micros` microseconds after 1970-01-01 UTC, clamped to the years 0 to 9999.
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(micros.clamp(Self::MIN_MICROS, Self::MAX_MICROS))
    }

    /// Microseconds since 1970-01-01 UTC.
    pub fn unix_micros(self) -> i64 {
        self.0
    }

    fn to_date_time(self) -> OffsetDateTime {
        // In range by construction, so the epoch is never used.
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self::from_unix_micros(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => micros(after),
            Err(before) => -micros(before.duration()),
        })
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        let span = Duration::from_micros(timestamp.0.unsigned_abs());
        let moved = match timestamp.0 >= 0 {
            true => SystemTime::UNIX_EPOCH.checked_add(span),
            false => SystemTime::UNIX_EPOCH.checked_sub(span),
        };
        moved.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        // "2024-01-02T03:04:05" is 19 characters; only an offset can follow.
        let tail = text.get(19..).ok_or(InvalidTimestamp)?;
        let parsed = match tail.find(['Z', 'z', '+', '-']).map(|at| (at, tail.len() - at)) {
            None => OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339),
            // "+03" and "+0300" instead of "+03:00"
            Some((_, 3)) => OffsetDateTime::parse(&format!("{text}:00"), &Rfc3339),
            Some((at, 5)) => match text.split_at_checked(19 + at + 3) {
                Some((hours, minutes)) => {
                    OffsetDateTime::parse(&format!("{hours}:{minutes}"), &Rfc3339)
                }
                None => return Err(InvalidTimestamp),
            },
            Some(_) => OffsetDateTime::parse(text, &Rfc3339),
        };
        let parsed = parsed.map_err(|_| InvalidTimestamp)?;
        let micros = parsed.unix_timestamp() * 1_000_000 + i64::from(parsed.microsecond());
        match (Self::MIN_MICROS..=Self::MAX_MICROS).contains(&micros) {
            true => Ok(Self(micros)),
            false => Err(InvalidTimestamp),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let utc = self.to_date_time().to_offset(UtcOffset::UTC);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            utc.year(),
            u8::from(utc.month()),
            utc.day(),
            utc.hour(),
            utc.minute(),
            utc.second()
        )?;
        match utc.microsecond() {
            0 => f.write_str("+00:00"),
            micros => write!(f, ".{micros:06}+00:00"),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 date and time")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Timestamp {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn writes_six_digits_or_none() {
        assert_eq!(
            parse("2024-01-02T03:04:05.678901+00:00").to_string(),
            "2024-01-02T03:04:05.678901+00:00"
        );
        assert_eq!(parse("2024-01-02T03:04:05.5Z").to_string(), "2024-01-02T03:04:05.500000+00:00");
        assert_eq!(parse("2024-01-02T03:04:05.000Z").to_string(), "2024-01-02T03:04:05+00:00");
    }

    #[test]
    fn reads_every_form_the_python_services_write() {
        let same = parse("2024-01-02T03:04:05.678901Z");
        assert_eq!(parse("2024-01-02T03:04:05.678901"), same, "naive is UTC");
        assert_eq!(parse("2024-01-02T05:04:05.678901+02:00"), same);
        assert_eq!(parse("2024-01-02T03:04:05.678901999Z"), same, "cut to microseconds");
        assert_eq!(parse("2024-01-02T01:04:05.678901-02:00"), same);
    }

    #[test]
    fn reads_offsets_without_colon_or_minutes() {
        let same = parse("2024-01-02T03:04:05.678Z");
        assert_eq!(parse("2024-01-02T06:04:05.678+0300"), same, "Jackson's default");
        assert_eq!(parse("2024-01-02T06:04:05.678+03"), same);
        assert_eq!(parse("2024-01-01T21:34:05.678-0530"), same);
        assert_eq!(parse("2024-01-02T03:04:05+0000"), parse("2024-01-02T03:04:05Z"));
        for bad in
            ["+3", "+030", "+03000", "+0x00", "+0é0", "+-300", "+2400", "+0360", "Z00", "ZZ:00"]
        {
            let text = format!("2024-01-02T06:04:05.678{bad}");
            assert_eq!(text.parse::<Timestamp>(), Err(InvalidTimestamp), "{bad}");
        }
    }

    #[test]
    fn refuses_what_is_no_time() {
        for bad in ["", "yesterday", "2024-01-02", "2024-13-02T03:04:05Z", "2024-01-02T03:04:05é"]
        {
            assert_eq!(bad.parse::<Timestamp>(), Err(InvalidTimestamp), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_and_system_time_round_trip(micros in Timestamp::MIN_MICROS..=Timestamp::MAX_MICROS) {
            let timestamp = Timestamp::from_unix_micros(micros);
            proptest::prop_assert_eq!(parse(&timestamp.to_string()), timestamp);
            proptest::prop_assert_eq!(Timestamp::from(SystemTime::from(timestamp)), timestamp);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Timestamp>();
        }
    }
}

//! A point in time as events and headers carry it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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
        let micros = parse_micros(text.as_bytes()).ok_or(InvalidTimestamp)?;
        match (Self::MIN_MICROS..=Self::MAX_MICROS).contains(&micros) {
            true => Ok(Self(micros)),
            false => Err(InvalidTimestamp),
        }
    }
}

/// Microseconds since 1970. Any byte may separate date and time (RFC 3339, 5.6).
fn parse_micros(text: &[u8]) -> Option<i64> {
    let (date_time, rest) = text.split_first_chunk::<19>()?;
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, _, h0, h1, b':', n0, n1, b':', s0, s1] =
        *date_time
    else {
        return None;
    };
    let [century, year, month, day, hour, minute, second] =
        numbers([[y0, y1], [y2, y3], [m0, m1], [d0, d1], [h0, h1], [n0, n1], [s0, s1]])?;
    let day = days_since_1970(century * 100 + year, month, day)?;
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (micros, offset) = match rest {
        [b'.', fraction @ ..] => parse_fraction(fraction)?,
        _ => (0, rest),
    };
    let offset_minutes = match *offset {
        [] | [b'Z' | b'z'] | [b'+', b'0', b'0', b':', b'0', b'0'] => 0,
        [sign, h0, h1, b':', m0, m1] | [sign, h0, h1, m0, m1] => {
            offset_minutes(sign, [[h0, h1], [m0, m1]])?
        }
        [sign, h0, h1] => offset_minutes(sign, [[h0, h1], *b"00"])?,
        _ => return None,
    };
    let minutes = (day * 24 + i64::from(hour)) * 60 + i64::from(minute) - offset_minutes;
    match second {
        60 => last_micros_of_leap_second(minutes),
        _ => Some((minutes * 60 + i64::from(second)) * 1_000_000 + i64::from(micros)),
    }
}

/// Numbers of two digits each.
fn numbers<const N: usize>(texts: [[u8; 2]; N]) -> Option<[u32; N]> {
    let are_digits = texts.iter().flatten().fold(true, |all, byte| all & byte.is_ascii_digit());
    let number = |[tens, ones]: [u8; 2]| u32::from(tens - b'0') * 10 + u32::from(ones - b'0');
    are_digits.then(|| texts.map(number))
}

/// The microseconds of a fraction, cut, and the text behind it.
fn parse_fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    // Six digits at once, as this framework and python-cqrs write them.
    if let Some(([a, b, c, d, e, f], rest)) = text.split_first_chunk::<6>()
        && !rest.first().is_some_and(u8::is_ascii_digit)
        && let Some([high, middle, low]) = numbers([[*a, *b], [*c, *d], [*e, *f]])
    {
        return Some((high * 10_000 + middle * 100 + low, rest));
    }
    let (mut micros, mut unit, mut rest) = (0, 100_000, text);
    while let [digit @ b'0'..=b'9', behind @ ..] = rest {
        micros += u32::from(digit - b'0') * unit;
        unit /= 10;
        rest = behind;
    }
    (rest.len() < text.len()).then_some((micros, rest))
}

fn offset_minutes(sign: u8, hours_minutes: [[u8; 2]; 2]) -> Option<i64> {
    let [hours, minutes] = numbers(hours_minutes)?;
    if hours > 23 || minutes > 59 {
        return None;
    }
    let total = i64::from(hours * 60 + minutes);
    match sign {
        b'+' => Some(total),
        b'-' => Some(-total),
        _ => None,
    }
}

/// A leap second can only be the last one of a month. It is read as the last microsecond before it.
fn last_micros_of_leap_second(minutes: i64) -> Option<i64> {
    let end = minutes + 1;
    let is_end_of_month = end % MINUTES_PER_DAY == 0 && date(end / MINUTES_PER_DAY).2 == 1;
    is_end_of_month.then_some(end * 60_000_000 - 1)
}

const MINUTES_PER_DAY: i64 = 24 * 60;

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;
const DAYS_PER_400_YEARS: i64 = 146_097;

/// The day of a date in the Gregorian calendar, for the years 0 to 9999. Years are counted from March, so that
/// a leap day is the last day of its year.
fn days_since_1970(year: u32, month: u32, day: u32) -> Option<i64> {
    let is_leap =
        || year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_in_month = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if day == 29 && is_leap() => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=days_in_month).contains(&day) {
        return None;
    }
    // 400 years later, so that no number is negative.
    let (months, year) = match month {
        3.. => (month - 3, year + 400),
        _ => (month + 9, year + 399),
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leap_days + (153 * months + 2) / 5 + day - 1;
    Some(i64::from(days) - DAYS_PER_400_YEARS - DAYS_TO_1970)
}

/// Year, month and day of a day since 1970. The reverse of [`days_since_1970`].
fn date(day: i64) -> (i64, i64, i64) {
    let day = day + DAYS_TO_1970;
    let (era, of_era) = (day.div_euclid(DAYS_PER_400_YEARS), day.rem_euclid(DAYS_PER_400_YEARS));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let months = (5 * of_year + 2) / 153;
    let day = of_year - (153 * months + 2) / 5 + 1;
    let (month, next_year) = if months < 10 { (months + 3, 0) } else { (months - 9, 1) };
    (era * 400 + year + next_year, month, day)
}

/// The written form of a timestamp.
struct Text {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl Text {
    const LONGEST: usize = "2024-01-02T03:04:05.678901+00:00".len();
    const SECONDS: usize = "2024-01-02T03:04:05".len();

    fn new(timestamp: Timestamp) -> Self {
        let (seconds, micros) =
            (timestamp.0.div_euclid(1_000_000), timestamp.0.rem_euclid(1_000_000));
        let (minutes, second) = (seconds.div_euclid(60), seconds.rem_euclid(60));
        let (day, minutes) =
            (minutes.div_euclid(MINUTES_PER_DAY), minutes.rem_euclid(MINUTES_PER_DAY));
        let (year, month, day) = date(day);
        let mut text = Self { bytes: *b"0000-00-00T00:00:00.000000+00:00", length: Self::LONGEST };
        text.put(0..4, year);
        text.put(5..7, month);
        text.put(8..10, day);
        text.put(11..13, minutes / 60);
        text.put(14..16, minutes % 60);
        text.put(17..19, second);
        match micros {
            0 => {
                text.bytes.copy_within(Self::SECONDS + 7.., Self::SECONDS);
                text.length -= 7;
            }
            micros => text.put(20..26, micros),
        }
        text
    }

    /// Writes a number that is not negative and has no more digits than the place.
    fn put(&mut self, place: Range<usize>, mut number: i64) {
        for byte in self.bytes[place].iter_mut().rev() {
            *byte = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }

    fn as_str(&self) -> &str {
        // It is ASCII, so the default is never used.
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Text::new(*self).as_str())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Text::new(*self).as_str())
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

    /// The time that another implementation reads.
    fn by_time_crate(text: &str) -> Option<Timestamp> {
        use time::format_description::well_known::Rfc3339;
        let read = time::OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let micros = read.unix_timestamp() * 1_000_000 + i64::from(read.microsecond());
        (Timestamp::MIN_MICROS..=Timestamp::MAX_MICROS)
            .contains(&micros)
            .then_some(Timestamp(micros))
    }

    #[test]
    fn reads_leap_seconds_at_the_end_of_a_month() {
        let last = parse("2016-12-31T23:59:59.999999Z");
        for same in ["2016-12-31T23:59:60Z", "2016-12-31T23:59:60.5Z", "2017-01-01T01:59:60+02:00"]
        {
            assert_eq!(parse(same), last, "{same}");
            assert_eq!(by_time_crate(same), Some(last), "{same}");
        }
        for bad in ["2016-12-31T23:58:60Z", "2016-12-30T23:59:60Z", "2016-12-31T23:59:60+01:00"] {
            assert_eq!(bad.parse::<Timestamp>(), Err(InvalidTimestamp), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reads_what_the_time_crate_reads(
            year in 0..=9_999_u16, month in 0..=13_u8, day in 0..=32_u8,
            hour in 0..=24_u8, minute in 0..=60_u8, second in 0..=61_u8,
            fraction in "(\\.[0-9]{0,9})?",
            offset in "Z|z|[+-](0[0-9]|1[0-9]|2[0-4]):[0-6][0-9]|",
        ) {
            let time = format!("{hour:02}:{minute:02}:{second:02}{fraction}");
            let text = format!("{year:04}-{month:02}-{day:02}T{time}{offset}");
            let expected = match offset.is_empty() {
                true => by_time_crate(&format!("{text}Z")),
                false => by_time_crate(&text),
            };
            proptest::prop_assert_eq!(text.parse::<Timestamp>().ok(), expected, "{}", text);
        }

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

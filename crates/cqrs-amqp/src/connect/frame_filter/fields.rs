//! A reader of AMQP 0-9-1 fields, as strict as lapin's parser; part of the frame filter.

/// The deepest nesting of tables and arrays. lapin's parser recurses without a limit, and the stack of its
/// thread overflows near 1,000.
pub(super) const MAX_DEPTH: usize = 64;

/// Unread bytes. A read of more bytes than are left returns `None`.
#[derive(Debug, Clone, Copy)]
pub(in crate::connect) struct Fields<'a>(pub(in crate::connect) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (read, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(read)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (read, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*read)
    }

    pub(in crate::connect) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(in crate::connect) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(in crate::connect) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A short string without its length; not checked for UTF-8.
    pub(in crate::connect) fn short(&mut self) -> Option<&'a [u8]> {
        let (&length, rest) = self.0.split_first()?;
        let (read, rest) = rest.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(read)
    }

    /// A long string, byte array, array or table without its length.
    pub(super) fn long(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (read, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(read)
    }

    /// One entry of a table, which is nested in `depth` others.
    pub(super) fn entry(&mut self, depth: usize) -> Result<(), Fault> {
        let name = self.short().ok_or(Fault::Malformed)?;
        if std::str::from_utf8(name).is_err() {
            return Err(Fault::NotUtf8);
        }
        self.value(depth)
    }

    /// Skips one entry of a table without a check of its name and value.
    pub(super) fn skip_entry(&mut self) -> Option<()> {
        self.short()?;
        self.raw_value().map(drop)
    }

    /// One value, which is nested in `depth` tables and arrays.
    fn value(&mut self, depth: usize) -> Result<(), Fault> {
        let (kind, content) = self.raw_value().ok_or(Fault::Malformed)?;
        if !matches!(kind, b'A' | b'F') {
            return Ok(());
        }
        if depth >= MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        let mut inner = Fields(content);
        while !inner.is_empty() {
            match kind {
                b'A' => inner.value(depth + 1)?,
                _ => inner.entry(depth + 1)?,
            }
        }
        Ok(())
    }

    /// The type of a value and its bytes.
    fn raw_value(&mut self) -> Option<(u8, &'a [u8])> {
        let kind = self.u8()?;
        let content = match kind {
            b'V' => self.bytes(0)?,
            b't' | b'b' | b'B' => self.bytes(1)?,
            b's' | b'U' | b'u' => self.bytes(2)?,
            b'I' | b'i' | b'f' => self.bytes(4)?,
            b'D' => self.bytes(5)?,
            b'L' | b'l' | b'd' | b'T' => self.bytes(8)?,
            b'S' | b'x' | b'A' | b'F' => self.long()?,
            _ => return None,
        };
        Some((kind, content))
    }
}

/// The reason for which lapin cannot read a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    NotUtf8,
    TooDeep,
    /// It has an unknown type, or is longer than its table or frame.
    Malformed,
}

impl Fault {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NotUtf8 => "has a name that is not UTF-8",
            Self::TooDeep => "is nested more than 64 deep",
            Self::Malformed => "is malformed",
        }
    }
}

//! Which operating system is installed, by the file that says so.
//!
//! Format: freedesktop.org, os-release(5).

use serde::Serialize;

use super::ext::Ext;
use super::look::View;
use crate::Error;
use crate::safety::text;

/// In this order, as os-release(5) has it.
const PATHS: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// What an installed system says of itself, as it says it: see [`printable`](crate::printable).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Os {
    /// A word such as `debian`.
    pub id: Option<String>,
    /// A version such as `12`.
    pub version_id: Option<String>,
    /// A name for people, such as `Debian GNU/Linux 12 (bookworm)`.
    pub pretty_name: Option<String>,
}

/// Looks for the file in an ext file system.
pub(super) fn read(view: View<'_>) -> Result<Option<Os>, Error> {
    let ext = Ext::open(view)?;
    for path in PATHS {
        if let Some(text) = ext.read_file(path)? {
            return Ok(Some(parse(&text)));
        }
    }
    Ok(None)
}

fn parse(file: &[u8]) -> Os {
    let mut os = Os::default();
    for line in file.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        let (key, value) = line.split_at(equals);
        let field = match key {
            b"ID" => &mut os.id,
            b"VERSION_ID" => &mut os.version_id,
            b"PRETTY_NAME" => &mut os.pretty_name,
            _ => continue,
        };
        *field = Some(text(&unquote(value.get(1..).unwrap_or_default())));
    }
    os
}

/// A value as a shell takes it: in quotes of either sort, or none, with characters behind backslashes.
fn unquote(value: &[u8]) -> Vec<u8> {
    let inner = match value {
        [b'"', inner @ .., b'"'] => inner,
        [b'\'', inner @ .., b'\''] => return inner.to_vec(),
        plain => plain,
    };
    let mut plain = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        let byte = if *byte == b'\\' { bytes.next() } else { Some(byte) };
        plain.extend(byte);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_a_shell_does() {
        let file =
            b"# comment\nNAME=\"x\"\nPRETTY_NAME=\"A \\\"B\\\" \\$1\"\nID=debian\r\nVERSION_ID='12.\\5'\nbroken\n=\n";
        let os = parse(file);
        assert_eq!(os.pretty_name.as_deref(), Some("A \"B\" $1"));
        assert_eq!(os.id.as_deref(), Some("debian"));
        assert_eq!(os.version_id.as_deref(), Some("12.\\5"));
        assert_eq!(parse(b"\xff\0=\n\n"), Os::default());
    }
}

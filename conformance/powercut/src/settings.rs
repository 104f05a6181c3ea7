//! The environment, read once.

use crate::fault::{Control, Fault};

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The folder, without a slash at its end.
    pub(crate) folder: Vec<u8>,
    pub(crate) seed: u64,
    pub(crate) cut_at: Option<u64>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) ignored: Vec<Ignored>,
    pub(crate) control: Option<Control>,
    pub(crate) real_sync: bool,
}

/// Syncs that do nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ignored {
    pub(crate) of: SyncOf,
    /// What the path has to contain.
    pub(crate) part: String,
}

/// What is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncOf {
    Data,
    Folder,
}

impl Settings {
    /// What `variable` says; nothing without a folder.
    ///
    /// # Errors
    ///
    /// A sentence on what cannot be understood.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let Some(folder) = variable("POWERCUT_DIR") else {
            return Ok(None);
        };
        if !folder.starts_with('/') {
            return Err(format!("POWERCUT_DIR={folder} is not absolute"));
        }
        let number = |name: &str| {
            let text = variable(name);
            text.map(|text| text.parse::<u64>().map_err(|_| format!("{name}={text} is no number")))
                .transpose()
        };
        Ok(Some(Self {
            folder: folder.trim_end_matches('/').as_bytes().to_vec(),
            seed: number("POWERCUT_SEED")?.unwrap_or(0),
            cut_at: number("POWERCUT_AT")?,
            faults: list(variable("POWERCUT_FAIL"), Fault::parse)?,
            ignored: list(variable("POWERCUT_IGNORE"), Ignored::parse)?,
            control: variable("POWERCUT_CONTROL")
                .map(|path| Control::map(&path))
                .transpose()?,
            real_sync: match variable("POWERCUT_SYNC").as_deref() {
                None => false,
                Some("real") => true,
                Some(other) => return Err(format!("POWERCUT_SYNC={other} is not real")),
            },
        }))
    }
}

fn list<T>(text: Option<String>, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let text = text.unwrap_or_default();
    text.split(',').filter(|word| !word.is_empty()).map(parse).collect()
}

impl Ignored {
    fn parse(word: &str) -> Result<Self, String> {
        let (of, part) = word.split_once(':').unwrap_or((word, ""));
        let of = match of {
            "data" => SyncOf::Data,
            "dir" => SyncOf::Folder,
            _ => return Err(format!("POWERCUT_IGNORE: {word} is neither data:PATH nor dir:PATH")),
        };
        Ok(Self {
            of,
            part: part.to_owned(),
        })
    }

    pub(crate) fn covers(&self, of: SyncOf, path: &[u8]) -> bool {
        self.of == of && String::from_utf8_lossy(path).contains(&self.part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        Settings::read(|name| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn all_is_off_without_a_folder() {
        assert!(read(&[("POWERCUT_AT", "7")]).unwrap().is_none());
    }

    #[test]
    fn settings_are_read() {
        let settings = read(&[
            ("POWERCUT_DIR", "/a/b/"),
            ("POWERCUT_AT", "7"),
            ("POWERCUT_IGNORE", "data:/blobs/,dir"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!((settings.folder.as_slice(), settings.cut_at), (&b"/a/b"[..], Some(7)));
        assert!(settings.ignored[0].covers(SyncOf::Data, b"/a/b/blobs/1"));
        assert!(!settings.ignored[0].covers(SyncOf::Folder, b"/a/b/blobs/1"));
        assert!(!settings.ignored[0].covers(SyncOf::Data, b"/a/b/index/1"));
        assert!(settings.ignored[1].covers(SyncOf::Folder, b"/a/b"));
    }

    #[test]
    fn mistakes_are_errors() {
        for (name, value) in [
            ("POWERCUT_AT", "x"),
            ("POWERCUT_IGNORE", "wal"),
            ("POWERCUT_FAIL", "eio"),
            ("POWERCUT_SYNC", "yes"),
            ("POWERCUT_CONTROL", "/nowhere/at/all"),
        ] {
            assert!(
                read(&[("POWERCUT_DIR", "/a"), (name, value)]).is_err(),
                "{name}={value}"
            );
        }
        assert!(read(&[("POWERCUT_DIR", "relative")]).is_err());
    }
}

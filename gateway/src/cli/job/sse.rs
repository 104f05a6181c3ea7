//! Server-sent events, as they come in: WHATWG HTML, "Parsing an event stream".

use anyhow::bail;

/// Longest event, in bytes: jobs are far shorter.
const EVENT_LEN_MAX: usize = 1 << 20;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
}

/// Puts chunks together into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// A line that has not ended.
    line: Vec<u8>,
    name: String,
    data: Vec<String>,
    /// Bytes in all of these.
    len: usize,
}

impl Parser {
    /// The events that `chunk` completes.
    pub(super) fn push(&mut self, chunk: &[u8]) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        for byte in chunk {
            self.len += 1;
            if self.len > EVENT_LEN_MAX {
                bail!("the server sends an event of over {EVENT_LEN_MAX} bytes");
            }
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                events.extend(self.end_line(line.strip_suffix('\r').unwrap_or(&line)));
            } else {
                self.line.push(*byte);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            self.len = 0;
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            return (!data.is_empty()).then(|| Event {
                name,
                data: data.join("\n"),
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => self.data.push(value.to_owned()),
            // Comments have no name; other fields mean nothing here.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_chunks() {
        let text = ":\n\nevent: job\ndata: {\"a\":1}\n\n: alive\n\nevent:x\r\ndata:1\r\ndata: 2\r\n\r\nevent: none\n\ndata: cut";
        let expected = [("job", "{\"a\":1}"), ("x", "1\n2")];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                events.extend(parser.push(chunk).unwrap());
            }
            let found: Vec<_> = events.iter().map(|e| (e.name.as_str(), e.data.as_str())).collect();
            assert_eq!(found, expected, "in chunks of {size}");
        }
    }

    #[test]
    fn endless_events_are_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1 << 16];
        assert!((0..17).any(|_| parser.push(&chunk).is_err()));
    }
}

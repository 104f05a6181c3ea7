//! The progress of what works on a folder, on the terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lithos_storage::local::Progress;

/// How often a bar that stands still shows that it lives.
const TICK: Duration = Duration::from_millis(200);

/// A bar on stderr, if that is a terminal.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    stage: &'static str,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        Self { bar, stage: "" }
    }

    /// Shows bytes.
    pub(super) fn bytes(&mut self, progress: Progress) {
        if self.stage != progress.stage {
            self.stage = progress.stage;
            let style = match progress.total {
                Some(_) => "{msg:24} {wide_bar} {binary_bytes} of {binary_total_bytes} {eta}",
                None => "{spinner} {msg}",
            };
            self.begin(style);
        }
        if let Some(total) = progress.total {
            self.bar.set_length(total);
        }
        self.bar.set_position(progress.done);
    }

    /// Shows how many there are.
    pub(super) fn count(&mut self, stage: &'static str, done: u64) {
        if self.stage != stage {
            self.stage = stage;
            self.begin("{spinner} {msg:24} {human_pos}");
        }
        self.bar.set_position(done);
    }

    fn begin(&self, style: &str) {
        self.bar
            .set_style(ProgressStyle::with_template(style).expect("the templates are constants that are right"));
        self.bar.set_message(self.stage);
        self.bar.set_position(0);
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

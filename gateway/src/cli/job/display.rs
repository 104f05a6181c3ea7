//! Progress of jobs on standard error: bars on a terminal, plain lines elsewhere.

use std::{
    collections::HashMap,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{BinaryBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    admin::job::{JobStateView, JobView},
    cli::printable,
};

/// How often a bar moves though nothing was heard: its clock goes on.
const TICK: Duration = Duration::from_millis(250);
/// How long a stage must have been watched before its speed says something.
const SPEED_AFTER: Duration = Duration::from_millis(900);
/// Steps of progress that plain lines tell, in hundredths.
const STEP_PERCENT: u8 = 10;

/// Where progress is shown.
pub(super) enum Display {
    Bars {
        all: MultiProgress,
        bars: HashMap<String, Bar>,
    },
    Lines {
        last: HashMap<String, String>,
    },
}

impl Display {
    pub(super) fn on_stderr() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bars {
                all: MultiProgress::new(),
                bars: HashMap::new(),
            }
        } else {
            Self::Lines { last: HashMap::new() }
        }
    }

    /// Shows how a job stands.
    pub(super) fn show(&mut self, job: &JobView) {
        match self {
            Self::Bars { all, bars } if job.state.is_finished() => {
                if let Some(bar) = bars.remove(&job.id) {
                    all.remove(&bar.inner);
                }
                let _ = all.println(line(job));
            }
            Self::Bars { all, bars } => {
                let bar = bars.entry(job.id.clone()).or_insert_with(|| {
                    let bar = Bar::new(all.add(ProgressBar::no_length()));
                    bar.inner.enable_steady_tick(TICK);
                    bar
                });
                bar.update(job);
            }
            Self::Lines { last } => {
                // What goes on counts only in steps, or a log would be flooded.
                let step = job.percent.map(|percent| percent / STEP_PERCENT);
                let news = format!("{} {} {step:?} {:?}", job.state, job.stage, job.error);
                if last.get(&job.id) != Some(&news) {
                    eprintln!("{}", line(job));
                    last.insert(job.id.clone(), news);
                }
            }
        }
    }

    /// Says something that is of no one job.
    pub(super) fn say(&self, text: &str) {
        match self {
            Self::Bars { all, .. } => drop(all.println(text)),
            Self::Lines { .. } => eprintln!("{text}"),
        }
    }

    /// Clears what moves; what was said stays.
    pub(super) fn end(&self) {
        if let Self::Bars { all, .. } = self {
            let _ = all.clear();
        }
    }
}

/// A bar, and since when a stage of its job is watched.
pub(super) struct Bar {
    inner: ProgressBar,
    began: Instant,
    done_before: u64,
}

impl Bar {
    fn new(inner: ProgressBar) -> Self {
        inner.set_style(style(None));
        Self {
            inner,
            began: Instant::now(),
            done_before: 0,
        }
    }

    fn update(&mut self, job: &JobView) {
        // Another stage, or another attempt, begins anew.
        if self.inner.length() != job.total || job.done < self.inner.position() {
            self.inner.set_style(style(job.total));
            match job.total {
                Some(total) => self.inner.set_length(total),
                None => self.inner.unset_length(),
            }
            (self.began, self.done_before) = (Instant::now(), job.done);
        }
        self.inner.set_position(job.done);
        self.inner.set_prefix(self.speed(job));
        self.inner.set_message(message(job));
    }

    /// How fast the stage went while it was watched, and how long it will take at that.
    ///
    /// The bar's own rate would count what was done before as done at once.
    fn speed(&self, job: &JobView) -> String {
        let elapsed = self.began.elapsed();
        let done = job.done.saturating_sub(self.done_before);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        if elapsed < SPEED_AFTER || done == 0 {
            return String::new();
        }
        let per_second = done.saturating_mul(1000).checked_div(millis).unwrap_or(0).max(1);
        let speed = format!(" {}/s", BinaryBytes(per_second));
        match job.total {
            Some(total) => {
                let left = Duration::from_secs(total.saturating_sub(job.done) / per_second);
                format!("{speed}, {} left", HumanDuration(left))
            }
            None => speed,
        }
    }
}

fn style(total: Option<u64>) -> ProgressStyle {
    let template = match total {
        Some(_) => "[{bar:20}] {percent:>3} % {binary_bytes}/{binary_total_bytes}{prefix}  {msg}",
        None => "{spinner} {elapsed} {binary_bytes}{prefix}  {msg}",
    };
    ProgressStyle::with_template(template)
        .expect("the template is correct")
        .progress_chars("=> ")
}

/// What a job is, and what it is at.
fn message(job: &JobView) -> String {
    let mut text = printable(&format!("{} {}", job.kind, job.subject));
    let more = match (job.state, &job.error) {
        (JobStateView::Queued, Some(error)) => format!(": waits for another attempt, since {error}"),
        (JobStateView::Queued, None) => ": waits".to_owned(),
        _ if job.stage.is_empty() => String::new(),
        _ => format!(": {}", job.stage),
    };
    text.push_str(&printable(&more));
    text
}

/// All of it in one line.
fn line(job: &JobView) -> String {
    let outcome = job.result.as_ref().or(job.error.as_ref()).map(|text| printable(text));
    let title = printable(&format!("{} {}", job.kind, job.subject));
    match (job.state, outcome) {
        (JobStateView::Queued | JobStateView::Running, _) => {
            let progress = match (job.percent, job.total) {
                (Some(percent), Some(total)) => {
                    format!(", {percent} % ({} of {})", BinaryBytes(job.done), BinaryBytes(total))
                }
                _ => String::new(),
            };
            format!("{}{progress}", message(job))
        }
        (state, Some(outcome)) => format!("{title}: {state}: {outcome}"),
        (state, None) => format!("{title}: {state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::job::tests::job;

    #[test]
    fn lines_say_how_a_job_stands() {
        let mut running = job("01", JobStateView::Running);
        running.stage = "writing".to_owned();
        (running.done, running.total, running.percent) = (1 << 20, Some(1 << 21), Some(50));
        assert_eq!(
            line(&running),
            "convert b/k.img to qcow2: writing, 50 % (1.00 MiB of 2.00 MiB)"
        );
        let mut waiting = job("01", JobStateView::Queued);
        assert_eq!(line(&waiting), "convert b/k.img to qcow2: waits");
        waiting.error = Some("az2 is away".to_owned());
        assert_eq!(
            line(&waiting),
            "convert b/k.img to qcow2: waits for another attempt, since az2 is away"
        );
        let mut failed = job("01", JobStateView::Failed);
        failed.error = Some("the image is broken".to_owned());
        assert_eq!(line(&failed), "convert b/k.img to qcow2: failed: the image is broken");
    }

    #[test]
    fn bars_take_every_turn_of_a_job() {
        let mut bar = Bar::new(ProgressBar::hidden());
        let mut job = job("01", JobStateView::Queued);
        bar.update(&job);
        (job.state, job.done, job.total) = (JobStateView::Running, 7, Some(10));
        bar.update(&job);
        assert_eq!((bar.inner.position(), bar.inner.length()), (7, Some(10)));
        assert_eq!((bar.done_before, bar.inner.prefix().as_str()), (7, ""));
        (job.done, job.total) = (0, Some(20));
        bar.update(&job);
        assert_eq!((bar.inner.position(), bar.inner.length()), (0, Some(20)));
    }

    #[test]
    fn speed_counts_what_was_done_while_it_was_watched() {
        let Some(began) = Instant::now().checked_sub(Duration::from_secs(10)) else {
            return;
        };
        let bar = Bar {
            inner: ProgressBar::hidden(),
            began,
            done_before: 50 << 20,
        };
        let mut job = job("01", JobStateView::Running);
        (job.done, job.total) = (50 << 20, Some(160 << 20));
        assert_eq!(bar.speed(&job), "");
        job.done = 60 << 20;
        assert!(bar.speed(&job).ends_with("/s, 2 minutes left"), "{}", bar.speed(&job));
        job.total = None;
        assert!(bar.speed(&job).ends_with("iB/s"), "{}", bar.speed(&job));
    }
}

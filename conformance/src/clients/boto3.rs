//! boto3, the AWS SDK for Python. The program is `boto3.py` beside this file.

use anyhow::{Result, ensure};

use super::{client_cases, desk::Desk, version_of};
use crate::tool::tool;

client_cases! {
    "boto3", "python3", || version_of({
        let mut command = tool("python3");
        command.args(["-c", "import boto3; print(boto3.__version__)"]);
        command
    });
    "client": objects, conditions, errors;
    "resource": resource;
    "transfer manager": transfers;
    "paginators": pages;
    "waiters": waiters;
    "presigned": presigned_urls, presigned_posts;
    "versions": versions;
}

fn run(desk: &Desk, story: &str) -> Result<()> {
    let has = tool("python3").args(["-c", "import boto3"]).output()?;
    ensure!(
        has.status.success(),
        "the python3 on PATH has no boto3. Run `deploy/bootstrap test`, and put what `deploy/bootstrap --print-path` \
         prints in front of PATH; `make test` does both"
    );
    desk.run_program(tool("python3"), ("story.py", include_str!("boto3.py")), story)
}

/// A case for each story of the program.
macro_rules! stories {
    ($($story:ident),+) => {
        $(fn $story(desk: &Desk) -> Result<()> {
            run(desk, stringify!($story))
        })+
    };
}

stories!(
    objects,
    conditions,
    errors,
    resource,
    transfers,
    pages,
    waiters,
    presigned_urls,
    presigned_posts,
    versions
);

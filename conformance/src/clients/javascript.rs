//! The AWS SDK for JavaScript. The program is `javascript.cjs` beside this file.

use anyhow::Result;

use super::{client_cases, desk::Desk, version_of};
use crate::tool::tool;

client_cases! {
    "AWS SDK for JavaScript", "lithos-node", || version_of({
        let mut command = tool("lithos-node");
        command.args(["-p", "require('@aws-sdk/client-s3/package.json').version"]);
        command
    });
    "client-s3": objects, errors;
    "lib-storage": uploads;
    "paginators": pages;
    "waiters": waiters;
    "presigner": presigned_urls;
}

/// A case for each story of the program.
macro_rules! stories {
    ($($story:ident),+) => {
        $(fn $story(desk: &Desk) -> Result<()> {
            desk.run_program(tool("lithos-node"), ("story.cjs", include_str!("javascript.cjs")), stringify!($story))
        })+
    };
}

stories!(objects, errors, uploads, pages, waiters, presigned_urls);

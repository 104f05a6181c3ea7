//! Owners, as answers show them.

use std::collections::{BTreeMap, BTreeSet};

use s3s::{S3Result, dto};

use super::wire::store_error;
use crate::{app::App, auth::user};

/// The owners that an answer shows, with their names.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<String, String>);

impl Owners {
    /// Looks the names of `ids` up.
    pub(super) async fn of(app: &App, ids: BTreeSet<&str>) -> S3Result<Self> {
        let mut names = BTreeMap::new();
        for id in ids {
            names.insert(id.to_owned(), user::name(app, id).await.map_err(store_error)?);
        }
        Ok(Self(names))
    }

    pub(super) fn owner(&self, id: &str) -> dto::Owner {
        dto::Owner {
            id: Some(id.to_owned()),
            display_name: Some(self.name(id)),
        }
    }

    pub(super) fn initiator(&self, id: &str) -> dto::Initiator {
        dto::Initiator {
            id: Some(id.to_owned()),
            display_name: Some(self.name(id)),
        }
    }

    fn name(&self, id: &str) -> String {
        self.0.get(id).map_or(id, String::as_str).to_owned()
    }
}

//! Images: what there is to know of one, and conversions of it.

use axum::{Json, extract::State};
use http::StatusCode;
use lithos_convert::{Inspection, Target, inspect_declared};
use lithos_storage::{BucketName, JOBS_MAX, ObjectKey};
use serde::{Deserialize, Serialize};

use super::{
    error::ApiError,
    request::{JsonBody, Parameters},
};
use crate::{
    app::SharedApp,
    image::{read_at::ObjectImage, wishes},
    job::chain,
};

/// Most targets of one request: as many jobs are noted with an object.
const TARGETS_MAX: usize = JOBS_MAX;

/// Which object to look at.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    bucket: String,
    key: String,
}

/// Conversions that are asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewConversions {
    pub(crate) bucket: String,
    pub(crate) key: String,
    /// Formats and profiles, as in the tag `convert-to`.
    pub(crate) targets: Vec<String>,
}

/// The jobs that make them, in the order of the targets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct AcceptedConversions {
    pub(crate) jobs: Vec<String>,
}

/// Looks at the object now; nothing is noted.
pub(super) async fn show(
    State(app): State<SharedApp>,
    Parameters(place): Parameters<Place>,
) -> Result<Json<Inspection>, ApiError> {
    let (bucket, key): (BucketName, ObjectKey) = (place.bucket.parse()?, place.key.parse()?);
    let object = app.store.open_object(&bucket, &key).await?;
    let image = ObjectImage::new(object.reader());
    let limits = app.config.image;
    let inspect = move || {
        let mut inspection = inspect_declared(&image, key.as_str())?;
        inspection.hold_to(&limits);
        Ok::<_, lithos_convert::Error>(inspection)
    };
    let inspected = tokio::task::spawn_blocking(inspect).await;
    let failed = |reason| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", reason);
    match inspected {
        Ok(Ok(inspection)) => Ok(Json(inspection)),
        Ok(Err(error)) => Err(failed(chain(&error))),
        Err(error) => Err(failed(format!("the inspection ended in a bug: {error}"))),
    }
}

/// Queues a job for each target, all of them or none.
pub(super) async fn convert(
    State(app): State<SharedApp>,
    JsonBody(new): JsonBody<NewConversions>,
) -> Result<(StatusCode, Json<AcceptedConversions>), ApiError> {
    let (bucket, key): (BucketName, ObjectKey) = (new.bucket.parse()?, new.key.parse()?);
    let targets = parse_targets(&new.targets).map_err(ApiError::invalid)?;
    let update = app.store.update_object(&bucket, &key, None, |_, record| {
        Ok(wishes::conversions(bucket.as_str(), key.as_str(), record, &targets))
    });
    let noted = update.await?.jobs;
    // The newest are the last that the record has.
    let jobs = noted.iter().skip(noted.len().saturating_sub(targets.len()));
    let jobs = jobs.map(ToString::to_string).collect();
    Ok((StatusCode::ACCEPTED, Json(AcceptedConversions { jobs })))
}

fn parse_targets(words: &[String]) -> Result<Vec<Target>, String> {
    if !(1..=TARGETS_MAX).contains(&words.len()) {
        return Err(format!(
            "there are {} targets; 1 to {TARGETS_MAX} can be asked for",
            words.len()
        ));
    }
    let mut targets: Vec<Target> = Vec::new();
    for word in words {
        let target = word.parse().map_err(|error| format!("the target {word:?}: {error}"))?;
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_formats_and_profiles_each_once() {
        let parse = |words: &[&str]| parse_targets(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        let targets = parse(&["qcow2:zstd", "profile=gcp", "qcow2:zstd"]).unwrap();
        let names: Vec<_> = targets.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["qcow2:zstd", "profile=gcp"]);
        assert!(parse(&[]).is_err());
        assert!(parse(&["qcow3"]).unwrap_err().contains("qcow3"));
        assert!(parse(&["raw"; 33]).unwrap_err().contains("33"));
    }
}

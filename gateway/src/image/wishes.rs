//! What tags wish for: formats, and zones.

use std::collections::BTreeSet;

use lithos_convert::Target;
use lithos_storage::{BucketRecord, ObjectRecord, Tags, blob::ZSTD_LEVELS, job::NewJob};

use crate::{app::App, job::Task, zone::ZoneName};

/// Object tag: formats to make of the object.
pub(crate) const CONVERT_TO: &str = "convert-to";
/// Object tag: zones to copy the object to.
pub(crate) const REPLICATE_TO: &str = "replicate-to";
/// Bucket tag: zones that want every object of the bucket.
pub(crate) const ZONES: &str = "zones";

/// Bucket tag: how its objects are compressed at rest: `zstd`, `zstd:LEVEL` or `none`.
pub(crate) const COMPRESSION: &str = "compression";
/// Bucket tag: what happens to images that are not what their key or content type says: `strict`, or `lenient`.
pub(crate) const IMAGE_POLICY: &str = "image-policy";

/// What happens to images that are not what their key or content type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImagePolicy {
    /// They have a warning, and are converted all the same.
    Lenient,
    /// They are not converted.
    Strict,
}

/// The level of zstd where none is given: zstd's own default.
const ZSTD_LEVEL_DEFAULT: i32 = 3;

/// The object waits to be replicated to a zone (`x-amz-replication-status`).
pub(crate) const PENDING: &str = "PENDING";

/// The formats that tags wish for.
pub(crate) fn targets(tags: &Tags) -> Result<Vec<Target>, String> {
    let mut targets: Vec<Target> = Vec::new();
    for word in words(tags.get(CONVERT_TO)) {
        let target: Target = word
            .parse()
            .map_err(|e| format!("the tag {CONVERT_TO} asks for {word:?}: {e}"))?;
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    Ok(targets)
}

/// The zones that a tag wishes for.
pub(crate) fn zones(tags: &Tags, tag: &str) -> Result<BTreeSet<ZoneName>, String> {
    words(tags.get(tag))
        .map(|word| word.parse().map_err(|e| format!("the tag {tag} names {e}")))
        .collect()
}

/// Checks the tags that mean something to this server.
pub(crate) fn check(tags: &Tags) -> Result<(), String> {
    targets(tags)?;
    zones(tags, REPLICATE_TO)?;
    zones(tags, ZONES)?;
    compression(tags)?;
    image_policy(tags)?;
    Ok(())
}

/// The policy that the tags of a bucket ask for.
pub(crate) fn image_policy(tags: &Tags) -> Result<ImagePolicy, String> {
    match tags.get(IMAGE_POLICY).map(String::as_str) {
        None | Some("lenient") => Ok(ImagePolicy::Lenient),
        Some("strict") => Ok(ImagePolicy::Strict),
        Some(other) => Err(format!(
            "the tag {IMAGE_POLICY} asks for {other:?}: say strict or lenient"
        )),
    }
}

/// The level of zstd at which the tags of a bucket ask for compression.
pub(crate) fn compression(tags: &Tags) -> Result<Option<i32>, String> {
    let Some(value) = tags.get(COMPRESSION) else {
        return Ok(None);
    };
    let level = match value.split_once(':') {
        None if value == "none" => return Ok(None),
        None if value == "zstd" => Some(ZSTD_LEVEL_DEFAULT),
        Some(("zstd", level)) => level.parse().ok().filter(|level| ZSTD_LEVELS.contains(level)),
        _ => None,
    };
    let (least, most) = (ZSTD_LEVELS.start(), ZSTD_LEVELS.end());
    level.map(Some).ok_or_else(|| {
        format!(
            "the tag {COMPRESSION} asks for {value:?}: say zstd, zstd:LEVEL with a level of {least} to {most}, or none"
        )
    })
}

/// The jobs that the tags of an object and of its bucket wish for; notes in the record which zones wait for it.
pub(crate) fn jobs(
    app: &App,
    bucket: &str,
    key: &str,
    bucket_record: &BucketRecord,
    record: &mut ObjectRecord,
) -> Vec<NewJob> {
    // Tags were checked when they came in; what an older release let through wishes for nothing.
    let mut jobs = convert(bucket, key, record);
    jobs.extend(replicate(app, bucket, key, bucket_record, record));
    jobs
}

/// The conversions that the object's tags wish for.
fn convert(bucket: &str, key: &str, record: &ObjectRecord) -> Vec<NewJob> {
    conversions(bucket, key, record, &targets(&record.tags).unwrap_or_default())
}

/// Conversions of an object as it is now.
pub(crate) fn conversions(bucket: &str, key: &str, record: &ObjectRecord, targets: &[Target]) -> Vec<NewJob> {
    let version = record.layout_id.to_string();
    targets
        .iter()
        .map(|target| {
            let (bucket, key) = (bucket.to_owned(), key.to_owned());
            Task::Convert {
                bucket,
                key,
                version: version.clone(),
                target: target.to_string(),
            }
            .job()
        })
        .collect()
}

/// The replications that the tags of the object and of its bucket wish for.
pub(crate) fn replicate(
    app: &App,
    bucket: &str,
    key: &str,
    bucket_record: &BucketRecord,
    record: &mut ObjectRecord,
) -> Vec<NewJob> {
    let mut wanted = zones(&record.tags, REPLICATE_TO).unwrap_or_default();
    wanted.extend(zones(&bucket_record.tags, ZONES).unwrap_or_default());
    wanted
        .iter()
        .flat_map(|zone| queue_replication(app, bucket, key, record, zone))
        .collect()
}

/// The replication to `zone`, if the bucket is still bound to it or the object still wants it.
pub(crate) fn replicate_to(
    app: &App,
    bucket: &str,
    key: &str,
    bucket_record: &BucketRecord,
    record: &mut ObjectRecord,
    zone: &ZoneName,
) -> Vec<NewJob> {
    let wants = |tags, tag| zones(tags, tag).is_ok_and(|zones| zones.contains(zone));
    if wants(&bucket_record.tags, ZONES) || wants(&record.tags, REPLICATE_TO) {
        queue_replication(app, bucket, key, record, zone)
    } else {
        Vec::new()
    }
}

fn queue_replication(app: &App, bucket: &str, key: &str, record: &mut ObjectRecord, zone: &ZoneName) -> Vec<NewJob> {
    if app.serves(zone) {
        return Vec::new();
    }
    record.replication.insert(zone.to_string(), PENDING.to_owned());
    vec![
        Task::Replicate {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            zone: zone.clone(),
        }
        .job(),
    ]
}

/// Words that spaces or commas separate.
fn words(value: Option<&String>) -> impl Iterator<Item = &str> {
    value
        .map(String::as_str)
        .unwrap_or_default()
        .split([' ', ','])
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tag: &str, value: &str) -> Tags {
        Tags::from([(tag.to_owned(), value.to_owned())])
    }

    #[test]
    fn words_are_separated_by_spaces_or_commas() {
        let found: Vec<String> = targets(&tags(CONVERT_TO, " qcow2,raw  qcow2 "))
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["qcow2", "raw"]);
        let found = zones(&tags(REPLICATE_TO, "az2, az3"), REPLICATE_TO).unwrap();
        assert_eq!(found.into_iter().map(String::from).collect::<Vec<_>>(), ["az2", "az3"]);
        assert!(targets(&Tags::new()).unwrap().is_empty());
    }

    #[test]
    fn wishes_that_cannot_come_true_say_why() {
        assert!(check(&tags(CONVERT_TO, "qcow3")).unwrap_err().contains("qcow3"));
        assert!(check(&tags(REPLICATE_TO, "a/b")).unwrap_err().contains("a/b"));
    }

    #[test]
    fn image_policies_are_strict_or_lenient() {
        let policy = |value| image_policy(&tags(IMAGE_POLICY, value));
        assert_eq!(image_policy(&Tags::new()), Ok(ImagePolicy::Lenient));
        assert_eq!(policy("lenient"), Ok(ImagePolicy::Lenient));
        assert_eq!(policy("strict"), Ok(ImagePolicy::Strict));
        assert!(
            check(&tags(IMAGE_POLICY, "Strict"))
                .unwrap_err()
                .contains("strict or lenient")
        );
    }

    #[test]
    fn compression_is_asked_for_by_name_and_level() {
        assert_eq!(compression(&Tags::new()), Ok(None));
        for (value, level) in [
            ("none", None),
            ("zstd", Some(3)),
            ("zstd:1", Some(1)),
            ("zstd:19", Some(19)),
        ] {
            assert_eq!(compression(&tags(COMPRESSION, value)), Ok(level), "{value}");
        }
        for bad in ["", "lz4", "zstd:", "zstd:0", "zstd:20", "zstd:x", "none:1"] {
            assert!(
                check(&tags(COMPRESSION, bad)).unwrap_err().contains("zstd:LEVEL"),
                "{bad}"
            );
        }
    }
}

//! Random histories against a map of byte vectors.

use std::collections::BTreeMap;

use bytes::Bytes;
use lithos_storage::{CompletedPart, ErrorKind, Limits, PartNumber};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::world::{GRAIN, SMALL, World, key, new_object, noise};

/// A piece of content: zeros or not, and how long.
#[derive(Debug, Clone)]
struct Run {
    zero: bool,
    len: usize,
    seed: u64,
}

#[derive(Debug, Clone)]
enum PartSource {
    Body(Vec<Run>),
    Copy { from: usize, start: Index, end: Index },
}

#[derive(Debug, Clone, Copy)]
enum Finish {
    Complete,
    CompleteTwice,
    Abort,
    LeaveOpen,
}

#[derive(Debug, Clone)]
enum Op {
    Put {
        to: usize,
        runs: Vec<Run>,
    },
    Copy {
        from: usize,
        to: usize,
    },
    Build {
        from: usize,
        to: usize,
        cuts: Vec<(Index, Index)>,
        runs: Vec<Run>,
    },
    Multipart {
        to: usize,
        parts: Vec<(u16, PartSource)>,
        left_out: Option<Index>,
        finish: Finish,
    },
    Delete {
        key: usize,
    },
    Read {
        key: usize,
        start: Index,
        end: Index,
    },
    Sweep,
    Reopen,
}

const KEYS: [&str; 4] = ["a", "b/1", "b/2", "c"];

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let len = prop_oneof![3 => 1..6000_usize, 2 => Just(GRAIN), 1 => Just(2 * GRAIN), 1 => Just(GRAIN - 1), 1 => Just(3 * GRAIN + 5)];
    vec((any::<bool>(), len, any::<u64>()), 0..7).prop_map(|runs| {
        runs.into_iter()
            .map(|(zero, len, seed)| Run { zero, len, seed })
            .collect()
    })
}

fn render(runs: &[Run]) -> Vec<u8> {
    runs.iter()
        .flat_map(|run| {
            if run.zero {
                vec![0; run.len]
            } else {
                noise(run.seed, run.len)
            }
        })
        .collect()
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    let cut = (any::<Index>(), any::<Index>());
    let part = prop_oneof![
        2 => runs().prop_map(PartSource::Body),
        1 => (0..KEYS.len(), any::<Index>(), any::<Index>()).prop_map(|(from, start, end)| PartSource::Copy { from, start, end }),
    ];
    let finish = prop_oneof![
        3 => Just(Finish::Complete),
        2 => Just(Finish::CompleteTwice),
        1 => Just(Finish::Abort),
        1 => Just(Finish::LeaveOpen)
    ];
    prop_oneof![
        4 => (key.clone(), runs()).prop_map(|(to, runs)| Op::Put { to, runs }),
        2 => (key.clone(), key.clone()).prop_map(|(from, to)| Op::Copy { from, to }),
        2 => (key.clone(), key.clone(), vec(cut, 0..6), runs())
            .prop_map(|(from, to, cuts, runs)| Op::Build { from, to, cuts, runs }),
        3 => (key.clone(), vec((1_u16..6, part), 0..6), any::<Option<Index>>(), finish)
            .prop_map(|(to, parts, left_out, finish)| Op::Multipart { to, parts, left_out, finish }),
        2 => key.clone().prop_map(|key| Op::Delete { key }),
        2 => (key, any::<Index>(), any::<Index>()).prop_map(|(key, start, end)| Op::Read { key, start, end }),
        2 => Just(Op::Sweep),
        1 => Just(Op::Reopen),
    ]
}

type Model = BTreeMap<&'static str, Vec<u8>>;

fn cut(data: &[u8], start: Index, end: Index) -> std::ops::Range<usize> {
    let (a, b) = (start.index(data.len() + 1), end.index(data.len() + 1));
    a.min(b)..a.max(b)
}

async fn run(world: &mut World, model: &mut Model, op: &Op) {
    match op {
        Op::Put { to, runs } => {
            let data = render(runs);
            world.put(KEYS[*to], &data).await.unwrap();
            model.insert(KEYS[*to], data);
        }
        Op::Copy { from, to } => match world.copy(KEYS[*from], KEYS[*to]).await {
            Ok(()) => {
                let data = model[KEYS[*from]].clone();
                model.insert(KEYS[*to], data);
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSuchKey);
                assert!(!model.contains_key(KEYS[*from]));
            }
        },
        Op::Build { from, to, cuts, runs } => build(world, model, KEYS[*from], KEYS[*to], cuts, runs).await,
        Op::Multipart {
            to,
            parts,
            left_out,
            finish,
        } => {
            multipart(world, model, KEYS[*to], parts, *left_out, *finish).await;
        }
        Op::Delete { key: name } => {
            let name = KEYS[*name];
            let existed = world.store.delete_object(&world.bucket, &key(name)).await.unwrap();
            assert_eq!(existed, model.remove(name).is_some());
        }
        Op::Read { key: name, start, end } => {
            let Some(data) = model.get(KEYS[*name]) else { return };
            let range = cut(data, *start, *end);
            let open = world.store.open_object(&world.bucket, &key(KEYS[*name])).await.unwrap();
            let read = open.reader().read(range.start as u64..range.end as u64).await.unwrap();
            assert_eq!(read, data[range]);
        }
        Op::Sweep => {
            world.store.sweep().await.unwrap();
        }
        Op::Reopen => world.reopen().await,
    }
}

/// Pieces of one object and new bytes in turn, as a conversion makes them.
async fn build(world: &World, model: &mut Model, from: &str, to: &'static str, cuts: &[(Index, Index)], runs: &[Run]) {
    let Some(data) = model.get(from).cloned() else { return };
    let source = world.store.open_object(&world.bucket, &key(from)).await.unwrap();
    let mut builder = world.store.content_builder(Some(&source)).await.unwrap();
    let mut reader = source.reader();
    let mut expected = Vec::new();
    for n in 0..cuts.len().max(runs.len()) {
        if let Some((start, end)) = cuts.get(n) {
            let range = cut(&data, *start, *end);
            expected.extend_from_slice(&data[range.clone()]);
            let len = range.len() as u64;
            builder.push_range(&mut reader, range.start as u64, len).await.unwrap();
        }
        match runs.get(n) {
            Some(run) if run.zero => {
                expected.resize(expected.len() + run.len, 0);
                builder.push_zeros(run.len as u64).await.unwrap();
            }
            Some(run) => {
                let bytes = noise(run.seed, run.len);
                expected.extend_from_slice(&bytes);
                builder.push_bytes(Bytes::from(bytes)).await.unwrap();
            }
            None => {}
        }
    }
    let content = builder.finish().await.unwrap();
    assert_eq!(content.size(), expected.len() as u64);
    let new = new_object(content, "0".repeat(32));
    world
        .store
        .put_object(&world.bucket, &key(to), new, |_, _| Ok(Vec::new()))
        .await
        .unwrap();
    model.insert(to, expected);
}

async fn multipart(
    world: &World,
    model: &mut Model,
    to: &'static str,
    parts: &[(u16, PartSource)],
    left_out: Option<Index>,
    finish: Finish,
) {
    let upload = world.create_upload(to).await;
    let mut named: BTreeMap<u16, (CompletedPart, Vec<u8>)> = BTreeMap::new();
    for (number, source) in parts {
        let put = match source {
            PartSource::Body(runs) => {
                let data = render(runs);
                let part = world.put_part(to, upload, *number, &data).await.unwrap();
                Some((part, data))
            }
            PartSource::Copy { from, start, end } => {
                copy_part(world, model, to, upload, *number, KEYS[*from], *start, *end).await
            }
        };
        if let Some(put) = put {
            named.insert(*number, put);
        }
    }
    if let Some(index) = left_out.filter(|_| named.len() > 1) {
        let number = *named.keys().nth(index.index(named.len())).unwrap();
        named.remove(&number);
    }
    let completed: Vec<CompletedPart> = named.values().map(|(part, _)| part.clone()).collect();
    match finish {
        Finish::Complete | Finish::CompleteTwice => {
            let last = named.len().saturating_sub(1);
            let too_small = named
                .values()
                .take(last)
                .any(|(_, data)| (data.len() as u64) < SMALL.part_len_min);
            match world.complete(to, upload, &completed).await {
                Ok(_) => {
                    assert!(!too_small && !named.is_empty());
                    let data = named.into_values().flat_map(|(_, data)| data).collect();
                    model.insert(to, data);
                }
                Err(e) => assert_eq!(
                    e.kind(),
                    if too_small {
                        ErrorKind::PartTooSmall
                    } else {
                        ErrorKind::InvalidArgument
                    }
                ),
            }
            if matches!(finish, Finish::CompleteTwice) && !too_small && !completed.is_empty() {
                let again = world.complete(to, upload, &completed).await.unwrap();
                assert_eq!(again.layout_id, upload);
            }
        }
        Finish::Abort => {
            world.store.abort_upload(&world.bucket, &key(to), upload).await.unwrap();
            let again = world.complete(to, upload, &completed).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::NoSuchUpload);
        }
        Finish::LeaveOpen => {}
    }
}

#[expect(clippy::too_many_arguments, reason = "what UploadPartCopy names")]
async fn copy_part(
    world: &World,
    model: &Model,
    to: &str,
    upload: lithos_storage::LayoutId,
    number: u16,
    from: &str,
    start: Index,
    end: Index,
) -> Option<(CompletedPart, Vec<u8>)> {
    let data = model.get(from)?;
    let range = cut(data, start, end);
    let source = world.store.open_object(&world.bucket, &key(from)).await.unwrap();
    let mut builder = world.store.content_builder_for(upload, Some(&source)).await.unwrap();
    let (offset, len) = (range.start as u64, range.len() as u64);
    builder.push_range(&mut source.reader(), offset, len).await.unwrap();
    let content = builder.finish().await.unwrap();
    let number = PartNumber::new(i64::from(number)).unwrap();
    let etag = hex::encode([number.get().to_le_bytes()[0]; 16]);
    world
        .store
        .put_part(&world.bucket, &key(to), number, content, etag.clone(), None)
        .await
        .unwrap();
    let part = CompletedPart {
        number,
        etag,
        checksum: None,
    };
    Some((part, data[range].to_vec()))
}

async fn check(mut world: World, ops: &[Op]) {
    let mut model = Model::new();
    for op in ops {
        run(&mut world, &mut model, op).await;
    }
    assert_eq!(
        world.names().await,
        model.keys().map(|name| (*name).to_owned()).collect::<Vec<_>>()
    );
    for (name, data) in &model {
        assert!(world.get(name).await.as_ref() == Some(data), "{name} is what was put");
    }
    world.check_nothing_left().await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn memory_agrees_with_a_map(ops in vec(op(), 1..24)) {
        runtime().block_on(async { check(World::memory(SMALL).await, &ops).await });
    }

    #[test]
    fn memory_with_default_bounds_agrees_with_a_map(ops in vec(op(), 1..24)) {
        let limits = Limits { part_len_min: SMALL.part_len_min, ..Limits::default() };
        runtime().block_on(async { check(World::memory(limits).await, &ops).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn disk_agrees_with_a_map(ops in vec(op(), 1..24)) {
        runtime().block_on(async { check(World::disk(SMALL).await, &ops).await });
    }
}

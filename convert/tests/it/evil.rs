//! Evil images, in one table: each breaks one rule in an image that is good, and is refused with the reason for it, in little
//! time and memory. The table stands in `convert/EVIL.md`, too, which a test holds against this one.

use std::fmt::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crc_fast::{CrcAlgorithm, checksum};
use lithos_convert::{Content, Error, Limits, ReadAt, Slice, Target, inspect, open, plan, unwrap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Sparse, build, carry_out, noise, ova};

/// No image may take longer to be refused.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Nor may any take more memory, besides the image itself.
const MEMORY_MAX: u64 = 64 << 20;
/// Says to a copy of this test that its memory is to be limited.
const LIMITED: &str = "LITHOS_EVIL_LIMITED";
/// Has the table written instead of compared.
const BLESS: &str = "LITHOS_BLESS";
/// The table for people.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/EVIL.md");

/// An image, the rule that it breaks, and a part of the reason why it is refused.
struct Evil {
    base: Base,
    rule: &'static str,
    spoil: fn(&mut Vec<u8>),
    reason: &'static str,
}

/// The good image that is spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Base {
    Qcow2,
    Vmdk,
    Vhd,
    VhdFixed,
    Vhdx,
    Vdi,
    Raw,
    OvaSparse,
    OvaFlat,
}

impl Base {
    const ALL: [Self; 9] = [
        Self::Qcow2,
        Self::Vmdk,
        Self::Vhd,
        Self::VhdFixed,
        Self::Vhdx,
        Self::Vdi,
        Self::Raw,
        Self::OvaSparse,
        Self::OvaFlat,
    ];

    /// What it is made as, or its parts are.
    fn target(self) -> Target {
        match self {
            Self::Qcow2 => Target::QCOW2,
            Self::Vmdk | Self::OvaSparse => Target::VMDK,
            Self::Vhd => Target::VHD,
            Self::VhdFixed => Target::VHD_FIXED,
            Self::Vhdx => Target::VHDX,
            Self::Vdi => Target::VDI,
            Self::Raw | Self::OvaFlat => Target::RAW,
        }
    }

    /// A disk of 6 MiB with something in it, as we make it.
    fn image(self) -> Result<Vec<u8>> {
        let mut disk = vec![0; 6 << 20];
        disk[..200 << 10].copy_from_slice(&noise(1, 200 << 10));
        disk[3 << 20..(3 << 20) + 5000].copy_from_slice(&noise(2, 5000));
        disk[(5 << 20) + 512..(5 << 20) + 1024].copy_from_slice(&noise(3, 512));
        let (first, second) = disk.split_at(3 << 20);
        match self {
            Self::OvaSparse => {
                let extents = [first, second].map(|part| sparse_extent(part.to_vec()));
                let [first, second] = extents;
                let lines = ["RW 6144 SPARSE \"a.vmdk\"", "RW 6144 SPARSE \"b.vmdk\"", "RW 2048 ZERO"];
                Ok(split_ova("twoGbMaxExtentSparse", lines, &first?, &second?))
            }
            Self::OvaFlat => {
                let lines = ["RW 6144 FLAT \"a.vmdk\" 0", "RW 2048 ZERO", "RW 6144 FLAT \"b.vmdk\" 0"];
                Ok(split_ova("twoGbMaxExtentFlat", lines, first, second))
            }
            _ => made(disk, self.target()),
        }
    }
}

/// An image of a disk, as we make it.
fn made(disk: Vec<u8>, target: Target) -> Result<Vec<u8>> {
    let source: Arc<dyn ReadAt> = Arc::new(Sparse {
        bytes: disk,
        grain: 4096,
    });
    let plan = plan(open(Arc::clone(&source))?.into(), &target)?;
    build(&plan, &*source)
}

/// A sparse extent without a text in the place of the descriptor, as QEMU makes it.
fn sparse_extent(part: Vec<u8>) -> Result<Vec<u8>> {
    let mut file = made(part, Base::OvaSparse.target())?;
    file[512..21 * 512].fill(0);
    Ok(file)
}

fn split_ova(create_type: &str, extents: [&str; 3], first: &[u8], second: &[u8]) -> Vec<u8> {
    let lines = extents.join("\n");
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n{lines}\n"
    );
    ova(&[("disk.vmdk", text.as_bytes()), ("a.vmdk", first), ("b.vmdk", second)])
}

const fn evil(base: Base, rule: &'static str, spoil: fn(&mut Vec<u8>), reason: &'static str) -> Evil {
    Evil {
        base,
        rule,
        spoil,
        reason,
    }
}

// --- fields ---------------------------------------------------------------------------------------------------------

fn be32(b: &mut [u8], place: usize, value: u32) {
    b[place..place + 4].copy_from_slice(&value.to_be_bytes());
}

fn be64(b: &mut [u8], place: usize, value: u64) {
    b[place..place + 8].copy_from_slice(&value.to_be_bytes());
}

fn le32(b: &mut [u8], place: usize, value: u32) {
    b[place..place + 4].copy_from_slice(&value.to_le_bytes());
}

fn le64(b: &mut [u8], place: usize, value: u64) {
    b[place..place + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_be64(b: &[u8], place: usize) -> u64 {
    u64::from_be_bytes(b[place..place + 8].try_into().expect("eight bytes"))
}

fn get_le64(b: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(b[place..place + 8].try_into().expect("eight bytes"))
}

fn get_le32(b: &[u8], place: usize) -> u32 {
    u32::from_le_bytes(b[place..place + 4].try_into().expect("four bytes"))
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("a small file")
}

fn put(b: &mut Vec<u8>, place: usize, bytes: &[u8]) {
    if b.len() < place + bytes.len() {
        b.resize(place + bytes.len(), 0);
    }
    b[place..place + bytes.len()].copy_from_slice(bytes);
}

/// A file that begins with these bytes, and then has nothing.
fn only(b: &mut Vec<u8>, place: usize, magic: &[u8]) {
    b.clear();
    b.resize(70_000, 0);
    put(b, place, magic);
}

// --- qcow2 ----------------------------------------------------------------------------------------------------------

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const CLUSTER: usize = 65536;

fn l1(b: &[u8]) -> usize {
    at(get_be64(b, 40))
}

fn l2(b: &[u8]) -> usize {
    at(get_be64(b, l1(b)) & 0xff_ffff_ffff)
}

fn set_l1(b: &mut [u8], entry: u64) {
    let place = l1(b);
    be64(b, place, entry);
}

fn set_l2(b: &mut [u8], index: usize, entry: u64) {
    let place = l2(b) + index * 8;
    be64(b, place, entry);
}

/// Puts a header extension in front of the others.
fn extension(b: &mut Vec<u8>, kind: u32, content: &[u8]) {
    let start = 112;
    be32(b, start, kind);
    be32(b, start + 4, u32::try_from(content.len()).expect("short"));
    put(b, start + 8, content);
    let end = start + 8 + content.len().next_multiple_of(8);
    b[end..end + 8].fill(0);
}

/// Appends a compressed cluster, and makes it the first of the disk.
fn compressed(b: &mut Vec<u8>, stream: &[u8]) {
    let offset = b.len() as u64;
    b.extend(stream);
    b.resize(b.len().next_multiple_of(CLUSTER), 0);
    let sectors = (stream.len() as u64 - 1) / 512;
    set_l2(b, 0, COMPRESSED | sectors << 54 | offset);
}

fn deflated(len: usize) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&vec![7; len]).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// Makes the compression type zstd.
fn zstd_type(b: &mut [u8]) {
    be64(b, 72, 8);
    b[104] = 1;
}

/// Adds a second L1 entry, for a disk of 1 GiB.
fn second_l1(b: &mut [u8], entry: u64) {
    be64(b, 24, 1 << 30);
    be32(b, 36, 2);
    let place = l1(b) + 8;
    be64(b, place, entry);
}

// --- VMDK -----------------------------------------------------------------------------------------------------------

/// Where the grain directory, the first grain table, and the entry of the first grain are.
fn directory(b: &[u8]) -> usize {
    at(get_le64(b, 56)) * 512
}

fn grain_table(b: &[u8]) -> usize {
    get_le32(b, directory(b)) as usize * 512
}

/// Replaces text in the descriptor, whose length stays.
fn descriptor(b: &mut [u8], old: &str, new: &str) {
    let text = String::from_utf8_lossy(&b[512..21 * 512]).into_owned();
    let text = text.trim_end_matches('\0').replacen(old, new, 1);
    b[512..21 * 512].fill(0);
    b[512..512 + text.len()].copy_from_slice(text.as_bytes());
}

fn descriptor_line(b: &mut [u8], line: &str) {
    descriptor(b, "# Extent description\n", &format!("{line}\n# Extent description\n"));
}

/// Makes a stream of it whose footer, before the end, has another capacity than the header.
fn footer_unlike(b: &mut Vec<u8>) {
    descriptor(b, "monolithicSparse", "streamOptimized");
    le32(b, 4, 3);
    le32(b, 8, 3 << 16 | 1);
    b[77] = 1;
    let mut footer = b[..512].to_vec();
    le64(&mut footer, 12, 7);
    le64(b, 56, u64::MAX);
    let mut marker = vec![0; 512];
    le32(&mut marker, 12, 3);
    b.extend([marker, footer, vec![0; 512]].concat());
}

// --- OVA ------------------------------------------------------------------------------------------------------------

/// Takes an archive apart, changes its files, and packs them again.
fn repack(b: &mut Vec<u8>, change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) {
    use std::io::Read;
    let mut archive = tar::Archive::new(b.as_slice());
    let mut files = Vec::new();
    // Behind the descriptor of the machine.
    for entry in archive.entries().expect("an archive").skip(1) {
        let mut entry = entry.expect("a file");
        let name = entry.path().expect("a name").to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its bytes");
        files.push((name, bytes));
    }
    change(&mut files);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    *b = ova(&files);
}

fn in_file(b: &mut Vec<u8>, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    repack(b, |files| {
        let file = files.iter_mut().find(|file| file.0 == name);
        change(&mut file.expect("a file of this name").1);
    });
}

/// Replaces text in the descriptor of the disk.
fn reword(b: &mut Vec<u8>, old: &str, new: &str) {
    in_file(b, "disk.vmdk", |file| {
        let text = String::from_utf8(file.clone()).expect("text");
        assert!(text.contains(old), "{old}");
        *file = text.replacen(old, new, 1).into_bytes();
    });
}

// --- VHD ------------------------------------------------------------------------------------------------------------

fn vhd_sum(b: &mut [u8], start: usize, len: usize, field: usize) {
    b[start + field..start + field + 4].fill(0);
    let sum: u32 = b[start..start + len].iter().map(|byte| u32::from(*byte)).sum();
    be32(b, start + field, !sum);
}

/// Makes all checksums of a dynamic disk hold, and its footers alike.
fn mend_vhd(b: &mut [u8]) {
    vhd_sum(b, 0, 512, 64);
    vhd_sum(b, 512, 1024, 36);
    let end = b.len() - 512;
    b.copy_within(..512, end);
}

fn mend_fixed(b: &mut [u8]) {
    let end = b.len() - 512;
    vhd_sum(b, end, 512, 64);
}

fn bat(b: &[u8]) -> usize {
    at(get_be64(b, 512 + 16))
}

fn set_bat(b: &mut [u8], index: usize, sector: u32) {
    let place = bat(b) + index * 4;
    be32(b, place, sector);
}

// --- VHDX -----------------------------------------------------------------------------------------------------------

const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const REGIONS: [usize; 2] = [192 << 10, 256 << 10];

fn seal(b: &mut [u8], start: usize, len: usize) {
    b[start + 4..start + 8].fill(0);
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, &b[start..start + len]);
    le32(b, start + 4, u32::try_from(crc).expect("32 bits"));
}

/// Changes both headers, and has their checksums hold.
fn headers(b: &mut [u8], change: impl Fn(&mut [u8])) {
    for start in HEADERS {
        change(&mut b[start..start + 4096]);
        seal(b, start, 4096);
    }
}

/// Changes both region tables, and has their checksums hold.
fn regions(b: &mut [u8], change: impl Fn(&mut [u8])) {
    for start in REGIONS {
        change(&mut b[start..start + 65536]);
        seal(b, start, 65536);
    }
}

fn vhdx_bat(b: &[u8]) -> usize {
    at(get_le64(b, REGIONS[0] + 16 + 16))
}

fn metadata(b: &[u8]) -> usize {
    at(get_le64(b, REGIONS[0] + 48 + 16))
}

/// Where an item of the metadata is: file parameters, size, id, logical and physical sector size.
fn item(b: &[u8], index: usize) -> usize {
    let start = metadata(b);
    start + get_le32(b, start + 32 + index * 32 + 16) as usize
}

// --- signatures -----------------------------------------------------------------------------------------------------

fn put_mbr(b: &mut Vec<u8>) {
    put(b, 446, &[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
    put(b, 510, &[0x55, 0xaa]);
}

fn put_vhd_footer(b: &mut Vec<u8>) {
    let end = b.len();
    let mut footer = Base::VhdFixed.image().expect("a plan");
    b.extend(footer.split_off(footer.len() - 512));
    assert_eq!(b.len(), end + 512);
}

const ALL: &[Evil] = &[
    evil(
        Base::Qcow2,
        "version is 2 or 3",
        |b| be32(b, 4, 9),
        "at byte 4: version 9",
    ),
    evil(
        Base::Qcow2,
        "no backing file",
        |b| {
            be64(b, 8, 0x8000);
            be32(b, 16, 11);
            put(b, 0x8000, b"/etc/shadow");
        },
        "at byte 8: the image needs a backing file \"/etc/shadow\"",
    ),
    evil(
        Base::Qcow2,
        "no backing file in version 2",
        |b| {
            be32(b, 4, 2);
            be64(b, 8, 0x8000);
            be32(b, 16, 4);
            put(b, 0x8000, b"nbd:");
        },
        "at byte 8: the image needs a backing file \"nbd:\"",
    ),
    evil(
        Base::Qcow2,
        "no backing file with a name elsewhere",
        |b| {
            be64(b, 8, u64::MAX);
            be32(b, 16, 9);
        },
        "with a name outside of the header",
    ),
    evil(
        Base::Qcow2,
        "no external data file, by bit",
        |b| be64(b, 72, 4),
        "at byte 72: the data is in an external data file",
    ),
    evil(
        Base::Qcow2,
        "no external data file, by extension",
        |b| extension(b, 0x4441_5441, b"/dev/sda"),
        "external data file \"/dev/sda\"",
    ),
    evil(
        Base::Qcow2,
        "no encryption by AES",
        |b| be32(b, 32, 1),
        "at byte 32: the image is encrypted (AES",
    ),
    evil(
        Base::Qcow2,
        "no encryption by LUKS",
        |b| be32(b, 32, 2),
        "at byte 32: the image is encrypted (LUKS",
    ),
    evil(
        Base::Qcow2,
        "no unknown encryption",
        |b| be32(b, 32, 3),
        "at byte 32: the image is encrypted (unknown encryption method 3)",
    ),
    evil(
        Base::Qcow2,
        "no encryption header",
        |b| extension(b, 0x0537_be77, &[0; 16]),
        "an encryption header extension",
    ),
    evil(
        Base::Qcow2,
        "not marked as corrupt",
        |b| be64(b, 72, 2),
        "at byte 72: the image is marked as corrupt",
    ),
    evil(
        Base::Qcow2,
        "no unknown incompatible feature",
        |b| be64(b, 72, 1 << 5),
        "at byte 72: unknown incompatible feature bit 5",
    ),
    evil(
        Base::Qcow2,
        "no unknown last incompatible feature",
        |b| be64(b, 72, 1 << 63),
        "at byte 72: unknown incompatible feature bit 63",
    ),
    evil(
        Base::Qcow2,
        "clusters are at least 512 bytes",
        |b| be32(b, 20, 8),
        "at byte 20: cluster bits 8",
    ),
    evil(
        Base::Qcow2,
        "clusters are at most 2 MiB",
        |b| be32(b, 20, 22),
        "at byte 20: cluster bits 22",
    ),
    evil(
        Base::Qcow2,
        "cluster bits do not overflow",
        |b| be32(b, 20, u32::MAX),
        "at byte 20: cluster bits 4294967295",
    ),
    evil(
        Base::Qcow2,
        "the header has its least length",
        |b| be32(b, 100, 96),
        "at byte 100: header length 96",
    ),
    evil(
        Base::Qcow2,
        "the header has a length in eights",
        |b| be32(b, 100, 107),
        "at byte 100: header length 107",
    ),
    evil(
        Base::Qcow2,
        "the header is in its cluster",
        |b| be32(b, 100, 0xffff_fff8),
        "at byte 100: header length 4294967288",
    ),
    evil(
        Base::Qcow2,
        "extensions are in the cluster",
        |b| {
            be32(b, 112, 1);
            be32(b, 116, u32::MAX);
        },
        "at byte 112: a header extension reaches beyond",
    ),
    evil(
        Base::Qcow2,
        "the compression type is known",
        |b| {
            be64(b, 72, 8);
            b[104] = 2;
        },
        "at byte 104: compression type 2",
    ),
    evil(
        Base::Qcow2,
        "the compression type is said twice",
        |b| b[104] = 1,
        "at byte 104: compression type 1 and incompatible feature bit 3",
    ),
    evil(
        Base::Qcow2,
        "subclusters need large clusters",
        |b| {
            be64(b, 72, 16);
            be32(b, 20, 9);
        },
        "at byte 20: extended L2 entries need clusters of 16384 bytes",
    ),
    evil(
        Base::Qcow2,
        "refcounts have at most 64 bits",
        |b| be32(b, 96, 7),
        "at byte 96: refcount order 7",
    ),
    evil(
        Base::Qcow2,
        "disks end at 64 TiB",
        |b| be64(b, 24, u64::MAX),
        "at byte 24: virtual size 18446744073709551615",
    ),
    evil(
        Base::Qcow2,
        "the L1 table has at most 32 MiB",
        |b| be32(b, 36, (4 << 20) + 1),
        "at byte 36: L1 table of 33554440 bytes",
    ),
    evil(
        Base::Qcow2,
        "the L1 table is in the file",
        |b| be32(b, 36, 4 << 20),
        "at byte 36: L1 table of 33554432 bytes",
    ),
    evil(
        Base::Qcow2,
        "the L1 table does not overflow",
        |b| be64(b, 40, u64::MAX << 16),
        "reaches beyond the end of the file",
    ),
    evil(
        Base::Qcow2,
        "the L1 table is aligned",
        |b| be64(b, 40, 0x1_0008),
        "at byte 40: L1 table offset 65544",
    ),
    evil(
        Base::Qcow2,
        "the L1 table is not the header",
        |b| be64(b, 40, 0),
        "at byte 40: L1 table overlaps the header",
    ),
    evil(
        Base::Qcow2,
        "the L1 table has an entry for each part of the disk",
        |b| be64(b, 24, 1 << 40),
        "L1 size 1 is too small for virtual size",
    ),
    evil(
        Base::Qcow2,
        "there is a refcount table",
        |b| be32(b, 56, 0),
        "at byte 56: there is no refcount table",
    ),
    evil(
        Base::Qcow2,
        "the refcount table is bounded",
        |b| be32(b, 56, u32::MAX),
        "at byte 56: refcount table of 281474976645120 bytes",
    ),
    evil(
        Base::Qcow2,
        "the refcount table is in the file",
        |b| be64(b, 48, 1 << 60),
        "at byte 48: refcount table of",
    ),
    evil(
        Base::Qcow2,
        "snapshots are bounded",
        |b| be32(b, 60, u32::MAX),
        "at byte 60: 4294967295 snapshots",
    ),
    evil(
        Base::Qcow2,
        "the snapshot table is in the file",
        |b| {
            be32(b, 60, 60_000);
            be64(b, 64, 1 << 40);
        },
        "at byte 60: snapshot table of",
    ),
    evil(
        Base::Qcow2,
        "L1 entries have no reserved bits",
        |b| set_l1(b, 1 << 60),
        "L1 entry 0x1000000000000000 has reserved bits set",
    ),
    evil(
        Base::Qcow2,
        "L2 tables are in the file",
        |b| set_l1(b, COPIED | 1 << 40),
        "L2 table of 65536 bytes at 1099511627776",
    ),
    evil(
        Base::Qcow2,
        "L2 tables are aligned",
        |b| set_l1(b, COPIED | 0x200),
        "L2 table offset 512",
    ),
    evil(
        Base::Qcow2,
        "L2 tables are not the L1 table",
        |b| {
            let table = l1(b) as u64;
            set_l1(b, COPIED | table);
        },
        "overlaps the L1 table",
    ),
    evil(
        Base::Qcow2,
        "L2 tables are used once",
        |b| {
            let table = l2(b) as u64;
            second_l1(b, COPIED | table);
        },
        "is used twice",
    ),
    evil(
        Base::Qcow2,
        "L2 tables are not data",
        |b| {
            let table = l2(b) as u64;
            set_l2(b, 1, COPIED | table);
        },
        "is used twice",
    ),
    evil(
        Base::Qcow2,
        "data is in the file",
        |b| set_l2(b, 0, COPIED | 1 << 50),
        "data cluster at 1125899906842624 is beyond the end",
    ),
    evil(
        Base::Qcow2,
        "data is aligned",
        |b| set_l2(b, 0, COPIED | 0x5_0200),
        "data cluster offset 328192",
    ),
    evil(
        Base::Qcow2,
        "data is not the header",
        |b| {
            set_l2(b, 0, COPIED | 0x1_0000 & !0xffff | 1 << 63);
            let table = l1(b) as u64;
            set_l2(b, 0, table);
        },
        "data cluster at",
    ),
    evil(
        Base::Qcow2,
        "data is used once",
        |b| {
            let data = get_be64(b, l2(b));
            set_l2(b, 40, data);
        },
        "is used twice",
    ),
    evil(
        Base::Qcow2,
        "data is used once, thousands of times",
        |b| {
            let data = get_be64(b, l2(b));
            (0..8192).for_each(|index| set_l2(b, index, data));
        },
        "is used twice",
    ),
    evil(
        Base::Qcow2,
        "data is not a compressed cluster",
        |b| {
            let data = get_be64(b, l2(b)) & !COPIED;
            set_l2(b, 40, COMPRESSED | data | 64);
        },
        "is used twice",
    ),
    evil(
        Base::Qcow2,
        "L2 entries have no reserved bits",
        |b| set_l2(b, 0, 2),
        "L2 entry 0x0000000000000002 has reserved bits set",
    ),
    evil(
        Base::Qcow2,
        "version 2 has no zero clusters",
        |b| {
            be32(b, 4, 2);
            set_l2(b, 0, 1);
        },
        "a zero cluster in an image of version 2",
    ),
    evil(
        Base::Qcow2,
        "compressed clusters are in the file",
        |b| set_l2(b, 0, COMPRESSED | 1 << 50),
        "compressed cluster at 1125899906842624 is beyond the end",
    ),
    evil(
        Base::Qcow2,
        "compressed clusters are not the header",
        |b| set_l2(b, 0, COMPRESSED | 64),
        "compressed cluster at 64 overlaps the header",
    ),
    evil(
        Base::Qcow2,
        "compressed clusters do not multiply",
        |b| {
            let data = get_be64(b, l2(b)) & !COPIED;
            b.truncate(at(data) + 1);
            (0..8192).for_each(|index| set_l2(b, index, COMPRESSED | data));
            be64(b, 24, 512 << 20);
        },
        "more data than a file of",
    ),
    evil(
        Base::Qcow2,
        "a compressed cluster is not too short",
        |b| compressed(b, &deflated(65535)),
        "zlib cluster decodes to 65535 bytes instead of 65536",
    ),
    evil(
        Base::Qcow2,
        "a compressed cluster is not too long",
        |b| compressed(b, &deflated(65537)),
        "zlib cluster: it decodes to more than 65536 bytes",
    ),
    evil(
        Base::Qcow2,
        "a compressed cluster is no bomb",
        |b| compressed(b, &deflated(16 << 20)),
        "zlib cluster: it decodes to more than 65536 bytes",
    ),
    evil(
        Base::Qcow2,
        "a compressed cluster is deflate",
        |b| compressed(b, &[0xff; 600]),
        "zlib cluster",
    ),
    evil(
        Base::Qcow2,
        "a zstd cluster is not too long",
        |b| {
            zstd_type(b);
            compressed(b, &zstd::bulk::compress(&[7; 65537], 3).expect("memory"));
        },
        "zstd cluster",
    ),
    evil(
        Base::Qcow2,
        "a zstd cluster is not too short",
        |b| {
            zstd_type(b);
            compressed(b, &zstd::bulk::compress(&[7; 100], 3).expect("memory"));
        },
        "zstd cluster decodes to 100 bytes instead of 65536",
    ),
    evil(
        Base::Qcow2,
        "a zstd cluster has no window of its own",
        |b| {
            zstd_type(b);
            compressed(b, &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x83, 0x00, 0x00, 0x41]);
        },
        "zstd cluster decodes to 16 bytes",
    ),
    evil(
        Base::Qcow2,
        "the file is whole",
        |b| b.truncate(b.len() - 2 * CLUSTER),
        "beyond the end of the file",
    ),
    evil(
        Base::Qcow2,
        "the header is whole",
        |b| b.truncate(90),
        "inside of the header",
    ),
    evil(
        Base::Qcow2,
        "the file is not VDI, too",
        |b| put(b, 64, &[0x7f, 0x10, 0xda, 0xbe]),
        "at byte 64: the file is qcow2 and vdi",
    ),
    evil(
        Base::Qcow2,
        "the file is not VHD, too",
        put_vhd_footer,
        "the file is qcow2 and vhd",
    ),
    evil(
        Base::Qcow2,
        "the file is not ISO 9660, too",
        |b| put(b, 32769, b"CD001"),
        "at byte 32769: the file is qcow2 and a disk with iso9660",
    ),
    evil(
        Base::Qcow2,
        "the file is not a partitioned disk, too",
        put_mbr,
        "at byte 446: the file is qcow2 and a disk with mbr",
    ),
    evil(
        Base::Vmdk,
        "version is 1 to 3",
        |b| le32(b, 4, 4),
        "at byte 4: version 4",
    ),
    evil(
        Base::Vmdk,
        "flags are known",
        |b| le32(b, 8, 1 << 24 | 1),
        "at byte 8: unknown flag bit 24",
    ),
    evil(
        Base::Vmdk,
        "line ends are as they were",
        |b| b[73] = b' ',
        "at byte 73: the line ends are changed",
    ),
    evil(
        Base::Vmdk,
        "compression is known",
        |b| {
            le32(b, 8, 3 << 16 | 1);
            b[77] = 9;
        },
        "at byte 77: compression algorithm 9",
    ),
    evil(
        Base::Vmdk,
        "grains are a power of 2",
        |b| le64(b, 20, 100),
        "at byte 20: grain size 100",
    ),
    evil(
        Base::Vmdk,
        "grains are at most 2 MiB",
        |b| le64(b, 20, 1 << 40),
        "at byte 20: grain size 1099511627776",
    ),
    evil(
        Base::Vmdk,
        "tables have 512 entries",
        |b| le32(b, 44, u32::MAX),
        "at byte 44: grain tables of 4294967295 entries",
    ),
    evil(
        Base::Vmdk,
        "disks end at 64 TiB",
        |b| le64(b, 12, u64::MAX),
        "at byte 12: virtual size",
    ),
    evil(
        Base::Vmdk,
        "the descriptor is bounded",
        |b| le64(b, 36, 1 << 40),
        "at byte 36: descriptor size 562949953421312 is more than 65536",
    ),
    evil(
        Base::Vmdk,
        "the descriptor is in the file",
        |b| le64(b, 28, 1 << 40),
        "at byte 28: descriptor of 10240 bytes",
    ),
    evil(
        Base::Vmdk,
        "the descriptor agrees on the capacity",
        |b| le64(b, 12, 12_287),
        "at byte 12: the capacity is 12287 sectors",
    ),
    evil(
        Base::Vmdk,
        "no parent, by content",
        |b| descriptor(b, "parentCID=ffffffff", "parentCID=12345678"),
        "the disk needs its parent, with the content \"12345678\"",
    ),
    evil(
        Base::Vmdk,
        "no parent, by name",
        |b| descriptor_line(b, "parentFileNameHint=\"/vm/base.vmdk\""),
        "refers to another file",
    ),
    evil(
        Base::Vmdk,
        "no change tracking file",
        |b| descriptor_line(b, "changeTrackPath=\"x-ctk.vmdk\""),
        "refers to another file",
    ),
    evil(
        Base::Vmdk,
        "extents have no path",
        |b| descriptor(b, "\"disk.vmdk\"", "\"../../etc/shadow\""),
        "the extent \"../../etc/shadow\" is a path",
    ),
    evil(
        Base::Vmdk,
        "extents have no drive",
        |b| descriptor(b, "\"disk.vmdk\"", "\"C:disk\""),
        "the extent \"C:disk\" is a path",
    ),
    evil(
        Base::Vmdk,
        "extents are not flat",
        |b| descriptor(b, "SPARSE", "FLAT"),
        "is of the type \"FLAT\"",
    ),
    evil(
        Base::Vmdk,
        "extents are sparse",
        |b| descriptor(b, "SPARSE", "VMFSRDM"),
        "is of the type \"VMFSRDM\"",
    ),
    evil(
        Base::Vmdk,
        "there is one extent",
        |b| descriptor_line(b, "RW 12288 SPARSE \"b.vmdk\""),
        "the disk has a second extent",
    ),
    evil(
        Base::Vmdk,
        "the disk is one file",
        |b| descriptor(b, "monolithicSparse", "twoGbMaxExtentSparse"),
        "create type \"twoGbMaxExtentSparse\"",
    ),
    evil(
        Base::Vmdk,
        "lines are known",
        |b| descriptor_line(b, "exec=\"/bin/sh\""),
        "unknown descriptor line \"exec=",
    ),
    evil(
        Base::Vmdk,
        "lines are text",
        |b| descriptor_line(b, "\u{202e}=1"),
        "unknown descriptor line",
    ),
    evil(
        Base::Vmdk,
        "the descriptor has a version",
        |b| descriptor(b, "version=1", "version=2"),
        "descriptor version \"2\"",
    ),
    evil(
        Base::Vmdk,
        "the footer is like the header",
        footer_unlike,
        "the footer is unlike the header",
    ),
    evil(
        Base::Vmdk,
        "the directory is in the file",
        |b| le64(b, 56, 1 << 50),
        "at byte 56: grain directory of 4 bytes",
    ),
    evil(
        Base::Vmdk,
        "the directory is not the header",
        |b| le64(b, 56, 0),
        "at byte 56: grain directory at 0 overlaps the header",
    ),
    evil(
        Base::Vmdk,
        "the redundant directory is in the file",
        |b| le64(b, 48, 1 << 50),
        "at byte 48: redundant grain directory of 4 bytes",
    ),
    evil(
        Base::Vmdk,
        "tables are in the file",
        |b| {
            let place = directory(b);
            le32(b, place, u32::MAX);
        },
        "grain table of 2048 bytes at 2199023255040",
    ),
    evil(
        Base::Vmdk,
        "tables are not the descriptor",
        |b| {
            let place = directory(b);
            le32(b, place, 2);
        },
        "grain table at 1024 overlaps the descriptor",
    ),
    evil(
        Base::Vmdk,
        "grains are in the file",
        |b| {
            let place = grain_table(b);
            le32(b, place, u32::MAX);
        },
        "reaches beyond the end of the file",
    ),
    evil(
        Base::Vmdk,
        "grains are not the descriptor",
        |b| {
            let place = grain_table(b);
            le32(b, place, 1);
        },
        "grain at 512 overlaps the descriptor",
    ),
    evil(
        Base::Vmdk,
        "grains are used once",
        |b| {
            let place = grain_table(b);
            let grain = get_le32(b, place);
            (0..96).for_each(|index| le32(b, place + index * 4, grain));
        },
        "more data than a file of",
    ),
    evil(
        Base::Vmdk,
        "the file is not a COWD extent",
        |b| b[..4].copy_from_slice(b"COWD"),
        "the file is a VMFS sparse extent (COWD)",
    ),
    evil(
        Base::Vmdk,
        "the file is not an SESparse extent",
        |b| le64(b, 0, 0xcafe_babe),
        "the file is a VMFS sparse extent (SESparse)",
    ),
    evil(
        Base::Vmdk,
        "the file is not a descriptor alone",
        |b| only(b, 0, b"# Disk DescriptorFile\nversion=1\n"),
        "a descriptor alone",
    ),
    evil(
        Base::Vmdk,
        "the file is not a partitioned disk, too",
        put_mbr,
        "at byte 446: the file is vmdk and a disk with mbr",
    ),
    evil(
        Base::Vhd,
        "the footer's checksum holds",
        |b| b[100] = 1,
        "at byte 64: footer checksum",
    ),
    evil(
        Base::Vhd,
        "the header's checksum holds",
        |b| b[512 + 1000] = 1,
        "at byte 548: dynamic header checksum",
    ),
    evil(
        Base::Vhd,
        "the footers are alike",
        |b| {
            let end = b.len() - 512;
            b[end + 80] ^= 1;
        },
        "the footer is unlike its copy",
    ),
    evil(
        Base::Vhd,
        "version is 1.0",
        |b| {
            b[13] = 2;
            mend_vhd(b);
        },
        "at byte 12: file format version 0x00020000",
    ),
    evil(
        Base::Vhd,
        "the type is known",
        |b| {
            b[63] = 6;
            mend_vhd(b);
        },
        "at byte 60: disk type 6",
    ),
    evil(
        Base::Vhd,
        "no parent",
        |b| {
            b[63] = 4;
            put(b, 512 + 64, &[0, b'a', 0, b'/', 0, b'b']);
            mend_vhd(b);
        },
        "at byte 60: the disk is differencing and needs its parent \"a/b\"",
    ),
    evil(
        Base::Vhd,
        "a fixed disk has no header",
        |b| {
            b[63] = 2;
            mend_vhd(b);
        },
        "at byte 60: the disk is fixed",
    ),
    evil(
        Base::Vhd,
        "disks end at 2040 GiB",
        |b| {
            be64(b, 48, 1 << 60);
            mend_vhd(b);
        },
        "at byte 48: virtual size 1152921504606846976",
    ),
    evil(
        Base::Vhd,
        "the header is in the file",
        |b| {
            be64(b, 16, 1 << 60);
            vhd_sum(b, 0, 512, 64);
            let end = b.len() - 512;
            b.copy_within(..512, end);
        },
        "at byte 16: dynamic header of 1024 bytes",
    ),
    evil(
        Base::Vhd,
        "blocks are a power of 2",
        |b| {
            be32(b, 512 + 32, 3 << 20);
            mend_vhd(b);
        },
        "at byte 544: block size 3145728",
    ),
    evil(
        Base::Vhd,
        "blocks are not empty",
        |b| {
            be32(b, 512 + 32, 0);
            mend_vhd(b);
        },
        "at byte 544: block size 0",
    ),
    evil(
        Base::Vhd,
        "there is an entry for each block",
        |b| {
            be32(b, 512 + 28, 2);
            mend_vhd(b);
        },
        "at byte 540: max table entries 2 are too few",
    ),
    evil(
        Base::Vhd,
        "the table is bounded",
        |b| {
            be64(b, 48, 1 << 40);
            be32(b, 512 + 32, 512);
            be32(b, 512 + 28, u32::MAX);
            mend_vhd(b);
        },
        "block allocation table of 8589934592 bytes is more than",
    ),
    evil(
        Base::Vhd,
        "the table is in the file",
        |b| {
            be64(b, 512 + 16, 1 << 60);
            mend_vhd(b);
        },
        "at byte 528: block allocation table of",
    ),
    evil(
        Base::Vhd,
        "the table is not the header",
        |b| {
            be64(b, 512 + 16, 1024);
            mend_vhd(b);
        },
        "overlaps the dynamic header",
    ),
    evil(
        Base::Vhd,
        "blocks are in the file",
        |b| set_bat(b, 0, u32::MAX - 1),
        "block of 2097664 bytes at 2199023254528",
    ),
    evil(
        Base::Vhd,
        "blocks are not the table",
        |b| {
            let sector = u32::try_from(bat(b) / 512).expect("small");
            set_bat(b, 0, sector);
        },
        "overlaps",
    ),
    evil(
        Base::Vhd,
        "blocks are used once",
        |b| {
            let sector = u32::from_be_bytes(b[bat(b)..bat(b) + 4].try_into().expect("four"));
            set_bat(b, 1, sector);
        },
        "overlap",
    ),
    evil(
        Base::Vhd,
        "blocks do not overlap",
        |b| {
            let sector = u32::from_be_bytes(b[bat(b)..bat(b) + 4].try_into().expect("four"));
            set_bat(b, 1, sector + 1);
        },
        "overlap",
    ),
    evil(
        Base::Vhd,
        "the file is not VDI, too",
        |b| put(b, 64, &[0x7f, 0x10, 0xda, 0xbe]),
        "at byte 64: the file is vhd and vdi",
    ),
    evil(
        Base::VhdFixed,
        "the footer's checksum holds",
        |b| {
            let end = b.len() - 512;
            b[end + 100] = 1;
        },
        "footer checksum",
    ),
    evil(
        Base::VhdFixed,
        "all of the disk is in the file",
        |b| {
            let end = b.len() - 512;
            be64(b, end + 48, 1 << 40);
            mend_fixed(b);
        },
        "the disk of 1099511627776 bytes",
    ),
    evil(
        Base::VhdFixed,
        "the size goes by the geometry where the creator does",
        |b| {
            let end = b.len() - 512;
            put(b, end + 28, b"vpc ");
            put(b, end + 56, &[0xff, 0xfe, 16, 255]);
            mend_fixed(b);
        },
        "the disk of 136897904640 bytes",
    ),
    evil(
        Base::VhdFixed,
        "a dynamic disk has a footer at its start",
        |b| {
            let end = b.len() - 512;
            b[end + 63] = 3;
            mend_fixed(b);
        },
        "the copy of the footer at the start of the file is missing",
    ),
    evil(
        Base::Vhdx,
        "the headers' checksums hold",
        |b| HEADERS.iter().for_each(|start| b[start + 80] ^= 1),
        "at byte 65540: header checksum",
    ),
    evil(
        Base::Vhdx,
        "the headers have their signature",
        |b| HEADERS.iter().for_each(|start| b[*start] ^= 1),
        "at byte 65536: the signature of the header is missing",
    ),
    evil(
        Base::Vhdx,
        "headers of one number are the same",
        |b| {
            headers(b, |h| le64(h, 8, 7));
            b[HEADERS[0] + 20] ^= 1;
            seal(b, HEADERS[0], 4096);
        },
        "both headers have sequence number 7",
    ),
    evil(
        Base::Vhdx,
        "version is 1",
        |b| headers(b, |h| h[66] = 2),
        "version 2, only 1 is known",
    ),
    evil(
        Base::Vhdx,
        "the log is in the file",
        |b| headers(b, |h| le64(h, 72, 1 << 40)),
        "log of 1048576 bytes at 1099511627776",
    ),
    evil(
        Base::Vhdx,
        "the log is not the header",
        |b| headers(b, |h| le64(h, 72, 0)),
        "log at 0 overlaps the header section",
    ),
    evil(
        Base::Vhdx,
        "a log in use has entries",
        |b| headers(b, |h| h[48] = 1),
        "the log is in use, but has no valid sequence",
    ),
    evil(
        Base::Vhdx,
        "the region tables' checksums hold",
        |b| REGIONS.iter().for_each(|start| b[start + 200] ^= 1),
        "at byte 196612: region table checksum",
    ),
    evil(
        Base::Vhdx,
        "the region tables are bounded",
        |b| regions(b, |r| le32(r, 8, u32::MAX)),
        "at byte 196616: entry count 4294967295 is more than 2047",
    ),
    evil(
        Base::Vhdx,
        "required regions are known",
        |b| {
            regions(b, |r| {
                le32(r, 8, 3);
                r[80..96].fill(5);
                le64(r, 96, 1 << 40);
                le32(r, 104, 1 << 20);
                le32(r, 108, 1);
            });
        },
        "unknown region of 1048576 bytes",
    ),
    evil(
        Base::Vhdx,
        "regions are known if required",
        |b| regions(b, |r| r[17] ^= 0xff),
        "the required region 2DC288",
    ),
    evil(
        Base::Vhdx,
        "there is one BAT",
        |b| {
            regions(b, |r| {
                let (one, other) = r.split_at_mut(48);
                other[..16].copy_from_slice(&one[16..32]);
            });
        },
        "there are two of the BAT region",
    ),
    evil(
        Base::Vhdx,
        "regions are in the file",
        |b| regions(b, |r| le64(r, 32, 1 << 50)),
        "BAT region of 1048576 bytes at 1125899906842624",
    ),
    evil(
        Base::Vhdx,
        "regions do not overlap",
        |b| {
            regions(b, |r| {
                let place = get_le64(r, 32);
                le64(r, 64, place);
            });
        },
        "overlaps the BAT region",
    ),
    evil(
        Base::Vhdx,
        "regions are in MiB",
        |b| regions(b, |r| le32(r, 40, 4096)),
        "BAT region length 4096",
    ),
    evil(
        Base::Vhdx,
        "required metadata is known",
        |b| {
            let place = metadata(b) + 32 + 96;
            b[place + 1] ^= 0xff;
        },
        "the required metadata item",
    ),
    evil(
        Base::Vhdx,
        "metadata is there once",
        |b| {
            let place = metadata(b) + 32;
            b.copy_within(place..place + 16, place + 32);
        },
        "is there twice",
    ),
    evil(
        Base::Vhdx,
        "metadata is in its region",
        |b| {
            let place = metadata(b) + 32 + 32 + 16;
            le32(b, place, u32::MAX);
        },
        "reaches beyond its region",
    ),
    evil(
        Base::Vhdx,
        "no parent, by flag",
        |b| {
            let place = item(b, 0);
            b[place + 4] |= 2;
        },
        "the disk is differencing and needs its parent (file parameters)",
    ),
    evil(
        Base::Vhdx,
        "blocks are at most 256 MiB",
        |b| {
            let place = item(b, 0);
            le32(b, place, 512 << 20);
        },
        "block size 536870912",
    ),
    evil(
        Base::Vhdx,
        "blocks are not empty",
        |b| {
            let place = item(b, 0);
            le32(b, place, 0);
        },
        "block size 0",
    ),
    evil(
        Base::Vhdx,
        "sectors are 512 or 4096 bytes",
        |b| {
            let place = item(b, 3);
            le32(b, place, 513);
        },
        "logical sector size 513",
    ),
    evil(
        Base::Vhdx,
        "disks end at 64 TiB",
        |b| {
            let place = item(b, 1);
            le64(b, place, u64::MAX);
        },
        "virtual size 18446744073709551615",
    ),
    evil(
        Base::Vhdx,
        "the BAT has an entry for each block",
        |b| {
            let place = item(b, 1);
            le64(b, place, 16 << 40);
        },
        "is too small for virtual disk size",
    ),
    evil(
        Base::Vhdx,
        "payload is in the file",
        |b| {
            let place = vhdx_bat(b);
            le64(b, place, 6 | 1 << 50);
        },
        "payload block of 2097152 bytes at 1125899906842624",
    ),
    evil(
        Base::Vhdx,
        "payload is not the BAT",
        |b| {
            let place = vhdx_bat(b);
            let table = place as u64;
            le64(b, place, 6 | table);
        },
        "overlaps the BAT region",
    ),
    evil(
        Base::Vhdx,
        "payload is used once",
        |b| {
            let place = vhdx_bat(b);
            let entry = get_le64(b, place);
            le64(b, place + 8, entry);
        },
        "overlaps another one",
    ),
    evil(
        Base::Vhdx,
        "blocks are present or not",
        |b| {
            let place = vhdx_bat(b);
            b[place] |= 7;
        },
        "is partially present",
    ),
    evil(
        Base::Vhdx,
        "entries have no reserved bits",
        |b| {
            let place = vhdx_bat(b);
            b[place] |= 8;
        },
        "has reserved bits set",
    ),
    evil(
        Base::Vhdx,
        "the file is not a partitioned disk, too",
        put_mbr,
        "at byte 446: the file is vhdx and a disk with mbr",
    ),
    evil(
        Base::Vdi,
        "version is 1.1",
        |b| le32(b, 68, 0x1_0000),
        "at byte 68: version 0x10000",
    ),
    evil(
        Base::Vdi,
        "blocks are 1 MiB",
        |b| le32(b, 376, 1 << 31),
        "at byte 376: block size 0x80000000",
    ),
    evil(
        Base::Vdi,
        "no undo image",
        |b| le32(b, 76, 3),
        "at byte 76: the image is an undo image",
    ),
    evil(
        Base::Vdi,
        "no parent, by type",
        |b| le32(b, 76, 4),
        "at byte 76: the image is differencing",
    ),
    evil(
        Base::Vdi,
        "no parent, by link",
        |b| b[424] = 1,
        "at byte 424: the image is linked to another one",
    ),
    evil(
        Base::Vdi,
        "no parent, by identifier",
        |b| b[440] = 1,
        "at byte 440: the image has a parent",
    ),
    evil(
        Base::Vdi,
        "disks end at 64 TiB",
        |b| le64(b, 368, u64::MAX),
        "at byte 368: virtual size",
    ),
    evil(
        Base::Vdi,
        "there is an entry for each block",
        |b| le32(b, 384, 2),
        "at byte 384: 2 blocks in image have no room",
    ),
    evil(
        Base::Vdi,
        "the map is in the file",
        |b| le32(b, 340, !511),
        "at byte 340: block map of 24 bytes",
    ),
    evil(
        Base::Vdi,
        "the map is not the header",
        |b| le32(b, 340, 0),
        "at byte 340: block map at 0 overlaps the header",
    ),
    evil(
        Base::Vdi,
        "data is not the map",
        |b| le32(b, 344, 512),
        "at byte 344: data at 512 overlaps the block map",
    ),
    evil(
        Base::Vdi,
        "blocks are in the file",
        |b| le32(b, 512, 1_000_000),
        "at byte 512: block of 1048576 bytes",
    ),
    evil(
        Base::Vdi,
        "blocks are used once",
        |b| {
            let entry = get_le32(b, 512);
            le32(b, 516, entry);
        },
        "of the file is used twice",
    ),
    evil(
        Base::Vdi,
        "the file is not tar, too",
        |b| put(b, 257, b"ustar"),
        "at byte 257: the file is vdi and tar",
    ),
    evil(
        Base::Raw,
        "a disk holds one file system",
        |b| {
            only(b, 1080, &[0x53, 0xef]);
            put(b, 65600, b"_BHRfS_M");
        },
        "at byte 65600: the file is raw and holds both ext and btrfs",
    ),
    evil(
        Base::Raw,
        "an ISO image holds no other file system",
        |b| {
            only(b, 32769, b"CD001");
            put(b, 0, b"XFSB");
        },
        "the file is raw and holds both iso9660 and xfs",
    ),
    evil(
        Base::Raw,
        "the file is not qcow version 1",
        |b| only(b, 0, b"QFI\xfb\0\0\0\x01"),
        "qcow: not supported",
    ),
    evil(
        Base::Raw,
        "the file is not QED",
        |b| only(b, 0, b"QED\0"),
        "qed: not supported",
    ),
    evil(
        Base::Raw,
        "the file is not ploop",
        |b| only(b, 0, b"WithouFreSpacExt"),
        "ploop: not supported",
    ),
    evil(
        Base::Raw,
        "the file is not LUKS",
        |b| only(b, 0, b"LUKS\xba\xbe\0\x02"),
        "luks: not supported: the image is an encrypted volume",
    ),
    evil(
        Base::Raw,
        "the file is not LZ4",
        |b| only(b, 0, b"\x04\x22\x4d\x18"),
        "lz4: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not a 7-Zip archive",
        |b| only(b, 0, b"7z\xbc\xaf\x27\x1c"),
        "7z: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not a RAR archive of version 4",
        |b| only(b, 0, b"Rar!\x1a\x07\0"),
        "rar: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not a RAR archive of version 5",
        |b| only(b, 0, b"Rar!\x1a\x07\x01\0"),
        "rar: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not of lzip",
        |b| only(b, 0, b"LZIP\x01"),
        "lzip: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not of lzop",
        |b| only(b, 0, b"\x89LZO\0\r\n\x1a\n"),
        "lzop: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not of compress",
        |b| only(b, 0, b"\x1f\x9d\x90"),
        "compress: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not LZMA alone",
        |b| only(b, 0, b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0"),
        "lzma: not supported: the file is compressed",
    ),
    evil(
        Base::Raw,
        "the file is not of compress and a disk",
        |b| {
            only(b, 0, b"\x1f\x9d\x90");
            b[1080..1082].copy_from_slice(&[0x53, 0xef]);
        },
        "compress: corrupt at byte 1080: the file is compress and a disk with ext",
    ),
    evil(
        Base::Raw,
        "the file is not a kernel",
        |b| only(b, 510, b"\x55\xaa\xeb\x66HdrS"),
        "aki: not supported: the file is a kernel",
    ),
    evil(
        Base::Raw,
        "the file is not a ramdisk",
        |b| only(b, 0, b"070701"),
        "ari: not supported: the file is a ramdisk",
    ),
    evil(
        Base::Raw,
        "the file is not gzip",
        |b| only(b, 0, b"\x1f\x8b\x08"),
        "gzip: corrupt: the compressed bytes cannot be decoded",
    ),
    evil(
        Base::Raw,
        "the file is not xz",
        |b| only(b, 0, b"\xfd7zXZ\0"),
        "xz: corrupt: the compressed bytes cannot be decoded",
    ),
    evil(
        Base::Raw,
        "the file is not zstd",
        |b| only(b, 0, b"\x28\xb5\x2f\xfd"),
        "zstd: corrupt: the compressed bytes cannot be decoded",
    ),
    evil(
        Base::Raw,
        "the file is not bzip2",
        |b| only(b, 0, b"BZh91AY&SY"),
        "bzip2: corrupt: the compressed bytes cannot be decoded",
    ),
    evil(
        Base::Raw,
        "the file is not zip",
        |b| only(b, 0, b"PK\x03\x04"),
        "zip: corrupt: a ZIP archive",
    ),
    evil(
        Base::Raw,
        "the file is not tar",
        |b| only(b, 257, b"ustar"),
        "tar: corrupt at byte 0: the checksum of a tar header is wrong",
    ),
    evil(
        Base::Raw,
        "an envelope is of one format",
        |b| {
            only(b, 0, &[0x1f, 0x8b, 0x08]);
            put(b, 257, b"ustar");
        },
        "at byte 257: the file is gzip and tar",
    ),
    evil(
        Base::OvaSparse,
        "extents have no path",
        |b| reword(b, "\"a.vmdk\"", "\"../a.vmdk\""),
        "the extent \"../a.vmdk\" is a path",
    ),
    evil(
        Base::OvaSparse,
        "extents are in the archive",
        |b| reword(b, "\"a.vmdk\"", "\"c.vmdk\""),
        "the extent \"c.vmdk\" is not in the archive",
    ),
    evil(
        Base::OvaSparse,
        "extents are in the archive once",
        |b| {
            repack(b, |files| {
                let again = files[1].clone();
                files.push(again);
            });
        },
        "the extent \"a.vmdk\" is in the archive twice",
    ),
    evil(
        Base::OvaSparse,
        "extents do not share a file",
        |b| reword(b, "\"b.vmdk\"", "\"a.vmdk\""),
        "the extent \"a.vmdk\" is in a file that has another part of the disk",
    ),
    evil(
        Base::OvaSparse,
        "extents are not the descriptor",
        |b| reword(b, "\"b.vmdk\"", "\"disk.vmdk\""),
        "the extent \"disk.vmdk\" is in a file that has another part of the disk, or is the descriptor",
    ),
    evil(
        Base::OvaSparse,
        "extents are as long as their files say",
        |b| reword(b, "RW 6144", "RW 6143"),
        "extent \"a.vmdk\": the capacity is 6144 sectors, the extent in the descriptor has 6143",
    ),
    evil(
        Base::OvaSparse,
        "extents are not empty",
        |b| reword(b, "RW 6144", "RW 0"),
        "the extent \"a.vmdk\" is empty",
    ),
    evil(
        Base::OvaSparse,
        "extents are sparse",
        |b| in_file(b, "b.vmdk", |b| b[0] = b"x"[0]),
        "extent \"b.vmdk\": the magic number is missing",
    ),
    evil(
        Base::OvaSparse,
        "extents are not compressed",
        |b| {
            in_file(b, "b.vmdk", |b| {
                le32(b, 8, 3 << 16 | 1);
                b[77] = 1;
            });
        },
        "extent \"b.vmdk\": compressed grains (flag bit 16)",
    ),
    evil(
        Base::OvaSparse,
        "extents have no descriptor",
        |b| in_file(b, "b.vmdk", |b| put(b, 512, b"# Disk DescriptorFile")),
        "extent \"b.vmdk\": a descriptor of its own",
    ),
    evil(
        Base::OvaSparse,
        "extents are no other descriptors",
        |b| in_file(b, "b.vmdk", |b| put(b, 0, b"# Disk DescriptorFile")),
        "extent \"b.vmdk\": the file is a descriptor alone",
    ),
    evil(
        Base::OvaSparse,
        "the directory is in its extent",
        |b| {
            in_file(b, "a.vmdk", |b| {
                let end = b.len() as u64 / 512;
                le64(b, 56, end);
            });
        },
        "extent \"a.vmdk\": grain directory of 4 bytes",
    ),
    evil(
        Base::OvaSparse,
        "tables are in their extent",
        |b| {
            in_file(b, "a.vmdk", |b| {
                let (place, end) = (directory(b), b.len() / 512);
                le32(b, place, u32::try_from(end).expect("a small file"));
            });
        },
        "extent \"a.vmdk\": grain table of 2048 bytes",
    ),
    evil(
        Base::OvaSparse,
        "grains are in their extent",
        |b| {
            in_file(b, "a.vmdk", |b| {
                let (place, end) = (grain_table(b), b.len() / 512);
                le32(b, place, u32::try_from(end).expect("a small file"));
            });
        },
        "extent \"a.vmdk\": grain of 1 bytes",
    ),
    evil(
        Base::OvaSparse,
        "there are at most 1000 extents",
        |b| reword(b, "RW 2048 ZERO", &"RW 1 ZERO\n".repeat(999)),
        "the disk has more than 1000 extents",
    ),
    evil(
        Base::OvaSparse,
        "disks end at 64 TiB",
        |b| reword(b, "RW 2048 ZERO", "RW 137438953472 ZERO"),
        "virtual size 70368750469120 is more than",
    ),
    evil(
        Base::OvaSparse,
        "sizes do not overflow",
        |b| reword(b, "RW 2048 ZERO", "RW 18446744073709551615 ZERO"),
        "virtual size 18446744073709551615 is more than",
    ),
    evil(
        Base::OvaSparse,
        "the descriptor is bounded",
        |b| reword(b, "CID=", &format!("# {}\nCID=", "x".repeat(128 << 10))),
        "descriptor size 131",
    ),
    evil(
        Base::OvaSparse,
        "types of extents are known",
        |b| reword(b, "SPARSE \"b", "VMFSSPARSE \"b"),
        "the extent \"b.vmdk\" is of the type \"VMFSSPARSE\"",
    ),
    evil(
        Base::OvaSparse,
        "extents can be read",
        |b| reword(b, "RW 6144", "NOACCESS 6144"),
        "the extent \"a.vmdk\" has the access \"NOACCESS\"",
    ),
    evil(
        Base::OvaSparse,
        "the create type is known",
        |b| reword(b, "twoGbMaxExtentSparse", "fullDevice"),
        "create type \"fullDevice\"",
    ),
    evil(
        Base::OvaSparse,
        "the create type is one of several files",
        |b| {
            reword(b, "twoGbMaxExtentSparse", "monolithicSparse");
            reword(b, "RW 6144 SPARSE \"b.vmdk\"\nRW 2048 ZERO\n", "");
        },
        "create type \"monolithicSparse\", whose descriptor is in its only file",
    ),
    evil(
        Base::OvaSparse,
        "the create type fits the extents",
        |b| reword(b, "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"),
        "is of the type \"SPARSE\", which is none for the create type \"twoGbMaxExtentFlat\"",
    ),
    evil(
        Base::OvaSparse,
        "there is one create type",
        |b| reword(b, "RW 2048", "createType=\"monolithicFlat\"\nRW 2048"),
        "create type \"monolithicFlat\" behind create type \"twoGbMaxExtentSparse\"",
    ),
    evil(
        Base::OvaSparse,
        "no parent, by content",
        |b| reword(b, "parentCID=ffffffff", "parentCID=12345678"),
        "the disk needs its parent, with the content \"12345678\"",
    ),
    evil(
        Base::OvaSparse,
        "no parent, by name",
        |b| reword(b, "CID=", "parentFileNameHint=\"a.vmdk\"\nCID="),
        "the disk refers to another file by \"parentFileNameHint=",
    ),
    evil(
        Base::OvaSparse,
        "no change tracking file",
        |b| reword(b, "CID=", "changeTrackPath=\"a.vmdk\"\nCID="),
        "the disk refers to another file by \"changeTrackPath=",
    ),
    evil(
        Base::OvaSparse,
        "lines are known",
        |b| reword(b, "CID=", "exec=\"/bin/sh\"\nCID="),
        "unknown descriptor line \"exec=",
    ),
    evil(
        Base::OvaFlat,
        "extents are in their files",
        |b| reword(b, "RW 6144", "RW 6145"),
        "extent \"a.vmdk\": flat extent of 3146240 bytes at 0 reaches beyond the end of the file at 3145728",
    ),
    evil(
        Base::OvaFlat,
        "offsets are in their files",
        |b| reword(b, "\"b.vmdk\" 0", "\"b.vmdk\" 1"),
        "extent \"b.vmdk\": flat extent of 3145728 bytes at 512 reaches beyond the end of the file",
    ),
    evil(
        Base::OvaFlat,
        "offsets do not overflow",
        |b| reword(b, "\"b.vmdk\" 0", "\"b.vmdk\" 18446744073709551615"),
        "extent \"b.vmdk\": flat extent of 3145728 bytes at 18446744073709551615",
    ),
    evil(
        Base::OvaFlat,
        "extents have an offset",
        |b| reword(b, "\"b.vmdk\" 0", "\"b.vmdk\""),
        "the extent \"b.vmdk\" is of the type \"FLAT\", but has no offset",
    ),
    evil(
        Base::OvaFlat,
        "extents do not share a file",
        |b| reword(b, "\"b.vmdk\"", "\"a.vmdk\""),
        "the extent \"a.vmdk\" is in a file that has another part of the disk",
    ),
    evil(
        Base::OvaFlat,
        "extents are no files of VMFS",
        |b| reword(b, "FLAT \"a", "VMFS \"a"),
        "the extent \"a.vmdk\" is of the type \"VMFS\"",
    ),
    evil(
        Base::OvaFlat,
        "a monolithic disk has one extent",
        |b| {
            reword(b, "twoGbMaxExtentFlat", "monolithicFlat");
            reword(b, "RW 2048 ZERO\n", "");
        },
        "the disk has a second extent \"b.vmdk\"",
    ),
];

/// An envelope may become less than usual.
const LIMITS: Limits = Limits {
    expanded_bytes_max: 16 << 20,
    ..Limits::DEFAULT
};

/// Goes all the way to the bytes of a target, through an envelope if there is one.
fn convert(source: &Arc<dyn ReadAt>) -> Result<()> {
    let source = match unwrap(source, &LIMITS)? {
        None => Arc::clone(source),
        Some(Content::Part(part)) => Arc::new(Slice::new(Arc::clone(source), part.offset, part.len)),
        Some(Content::Stream(mut stream)) => {
            let mut bytes = Vec::new();
            stream
                .read_to_end(&mut bytes)
                .map_err(|error| error.downcast::<Error>().expect("an error of the envelope"))?;
            Arc::new(bytes)
        }
    };
    let plan = plan(open(Arc::clone(&source))?.into(), &Target::QCOW2)?;
    carry_out(&plan, &*source, |_, _| Ok(()))
}

/// Why an image is refused, and how long that takes.
fn refuse(image: Vec<u8>) -> Result<(String, Duration)> {
    let source: Arc<dyn ReadAt> = Arc::new(image);
    let start = Instant::now();
    let inspection = inspect(&*source)?;
    let converted = convert(&source);
    let taken = start.elapsed();
    let error = converted.err().context("it was converted")?.downcast::<Error>()?;
    // What is in a compressed cluster or an envelope shows only when it is decoded.
    if let Some(refusal) = inspection.refusal {
        ensure!(refusal.reason == error.to_string(), "{} or {error}", refusal.reason);
    } else {
        let is_wrapped = inspection.format.is_envelope() && inspection.variant.is_none();
        let is_late = error.reason().contains("cluster") || is_wrapped;
        ensure!(is_late, "inspected, but: {error}");
    }
    Ok((error.to_string(), taken))
}

#[test]
fn what_is_spoilt_was_good() -> Result<()> {
    for base in Base::ALL {
        let source: Arc<dyn ReadAt> = Arc::new(base.image()?);
        convert(&source).with_context(|| format!("{base:?}"))?;
    }
    Ok(())
}

#[test]
fn all_are_refused_in_little_time_and_memory() -> Result<()> {
    if std::env::var_os(LIMITED).is_none() {
        // In a process of its own: a limit on memory holds for all threads.
        let this = "evil::all_are_refused_in_little_time_and_memory";
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", this, "--nocapture", "--test-threads=1"])
            .env(LIMITED, "1")
            .output()?;
        let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        ensure!(child.status.success(), "{}: {said}", child.status);
        ensure!(said.contains("1 passed"), "{said}");
        return Ok(());
    }
    let good: Vec<(Base, Vec<u8>)> = Base::ALL
        .into_iter()
        .map(|base| Ok((base, base.image()?)))
        .collect::<Result<_>>()?;
    let mut wrong = Vec::new();
    for evil in ALL {
        let name = format!("{:?}: {}", evil.base, evil.rule);
        let base = good.iter().find(|(base, _)| *base == evil.base);
        let mut image = base.context("a base that is not listed")?.1.clone();
        (evil.spoil)(&mut image);
        let unlimited = getrlimit(Resource::As);
        setrlimit(
            Resource::As,
            Rlimit {
                current: Some(address_space()? + MEMORY_MAX),
                ..unlimited
            },
        )?;
        let refused = refuse(image).with_context(|| name.clone());
        setrlimit(Resource::As, unlimited)?;
        match refused {
            Ok((reason, _)) if !reason.contains(evil.reason) => wrong.push(format!("{name}: {reason}")),
            Ok((_, taken)) if taken >= TIME_MAX => wrong.push(format!("{name}: {taken:?}")),
            Ok(_) => {}
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// How much this process has of its address space, in bytes.
fn address_space() -> Result<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').next().unwrap_or_default().parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[test]
fn the_document_lists_all() -> Result<()> {
    let mut table = String::from(
        "# Evil images\n\n\
         Each of these images is good but for one thing, and is refused, by an inspection and by a conversion, with a reason\n\
         that names the field and its place. Refusing one takes less than a second and less than 64 MiB of memory besides the\n\
         image. `tests/it/evil.rs` makes them; this page is held against it (`LITHOS_BLESS=1` writes it anew).\n\n\
         | # | image | rule that is broken | the refusal says |\n\
         | ---: | --- | --- | --- |\n",
    );
    for (number, evil) in (1..).zip(ALL) {
        let format = format!("{:?}", evil.base).to_lowercase();
        let reason = evil.reason.replace('|', "\\|");
        writeln!(table, "| {number} | {format} | {} | {reason} |", evil.rule)?;
    }
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(DOCUMENT, &table)?;
    }
    let document = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    ensure!(
        ALL.len() >= 60 && document == table,
        "{DOCUMENT} is out of date: run this test with {BLESS}=1"
    );
    Ok(())
}

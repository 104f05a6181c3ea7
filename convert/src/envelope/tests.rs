//! Envelopes made by the libraries and by hand, whole and broken.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ErrorKind;

/// What is wrapped: a megabyte that hardly compresses, and zeros.
fn content() -> Vec<u8> {
    let mut state = 1_u32;
    let mut bytes: Vec<u8> = (0..1 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    bytes.resize(3 << 20, 0);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bz2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn zip(files: &[(&str, &[u8])], deflate: bool) -> Vec<u8> {
    let mut archive = rawzip::ZipArchiveWriter::new(Vec::new());
    for (name, bytes) in files {
        let method = if deflate {
            rawzip::CompressionMethod::DEFLATE
        } else {
            rawzip::CompressionMethod::STORE
        };
        let (mut entry, config) = archive.new_file(name).compression_method(method).start().unwrap();
        let descriptor = if deflate {
            let encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::fast());
            let mut writer = config.wrap(encoder);
            writer.write_all(bytes).unwrap();
            let (encoder, descriptor) = writer.finish().unwrap();
            encoder.finish().unwrap();
            descriptor
        } else {
            let mut writer = config.wrap(&mut entry);
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap().1
        };
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap()
}

fn source(bytes: Vec<u8>) -> Arc<dyn ReadAt> {
    Arc::new(bytes)
}

/// Takes the content out, through all envelopes.
fn opened(bytes: Vec<u8>, expanded_max: u64) -> Result<Vec<u8>, String> {
    let chain = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    };
    let mut limits = Limits {
        expanded_bytes_max: expanded_max,
        ..Limits::DEFAULT
    };
    let mut file = bytes;
    loop {
        let source = source(file.clone());
        file = match unwrap(&source, &limits).map_err(|error| chain(&error))? {
            None => return Ok(file),
            Some(Content::Part(part)) => {
                part.manifest.check(&*source, |_| true).map_err(|error| chain(&error))?;
                let slice = Slice::new(source, part.offset, part.len);
                let mut bytes = vec![0; usize::try_from(slice.size()).unwrap()];
                slice.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            }
            Some(Content::Stream(mut stream)) => {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).map_err(|error| chain(&error))?;
                bytes
            }
        };
        limits = limits.inside();
    }
}

const LARGE: u64 = 1 << 30;

#[test]
fn envelopes_lie_in_each_other_only_so_deep() {
    let twice = gz(&gz(&content()));
    assert!(opened(twice.clone(), LARGE).unwrap() == content());
    let error = opened(gz(&twice), LARGE).unwrap_err();
    assert_eq!(
        error,
        "gzip: too large: there are more envelopes around the image than are accepted here (image-nesting-max)"
    );
}

#[test]
fn what_is_wrapped_comes_out() {
    let content = content();
    let disk = content.as_slice();
    let twice = |wrap: fn(&[u8]) -> Vec<u8>| [wrap(&disk[..1000]), wrap(&disk[1000..])].concat();
    let cases = [
        ("gz", gz(disk)),
        ("gz of two members", twice(gz)),
        ("gz with zeros behind it", [gz(disk), vec![0; 1]].concat()),
        (
            "gz of two members with many zeros behind them",
            [twice(gz), vec![0; 600_000]].concat(),
        ),
        ("xz", xz(disk)),
        ("xz of two streams", twice(xz)),
        ("zst", zst(disk)),
        ("zst of two frames", twice(zst)),
        ("bz2", bz2(disk)),
        ("bz2 of two streams", twice(bz2)),
        ("tar", tar(&[("disk.raw", disk)])),
        (
            "tar with companions",
            tar(&[
                ("README.md", b"hello"),
                ("a/SHA256SUMS.sha256", b"00"),
                ("a/disk", disk),
                ("._disk", b"fork"),
            ]),
        ),
        (
            "tar with a long name",
            tar(&[(&format!("{}/disk.raw", "x".repeat(300)), disk)]),
        ),
        ("tar.gz", gz(&tar(&[("disk.raw", disk)]))),
        ("zip", zip(&[("disk.vmdk", disk)], true)),
        (
            "zip, stored",
            zip(&[("disk.vmdk", disk), ("disk.vmdk.md5", b"0")], false),
        ),
        ("zip of gz", zip(&[("disk.gz", &gz(disk))], false)),
    ];
    for (what, bytes) in cases {
        assert!(opened(bytes, LARGE).unwrap() == content, "{what}");
    }
    assert!(unwrap(&source(content), &Limits::DEFAULT).unwrap().is_none());
}

#[test]
fn streams_end_at_the_bound() {
    let zeros = vec![0; 4 << 20];
    for bytes in [
        gz(&zeros),
        xz(&zeros),
        zst(&zeros),
        bz2(&zeros),
        zip(&[("a", &zeros)], true),
    ] {
        assert!(opened(bytes.clone(), zeros.len() as u64).is_ok());
        let error = opened(bytes, (4 << 20) - 1).unwrap_err();
        assert!(
            error.contains(
                "it expands to more than 4194303 bytes, the most that are accepted here (image-expanded-max)"
            ),
            "{error}"
        );
    }
}

#[test]
fn nothing_but_zeros_may_follow_gzip() {
    let whole = gz(&content());
    for (behind, reason) in [
        (b"garbage".to_vec(), "gzip"),
        (vec![0, 1], "zeros, and then something else"),
        (
            [vec![0; 300_000], whole.clone()].concat(),
            "zeros, and then something else",
        ),
        (vec![0x1f], "gzip"),
    ] {
        let error = opened([whole.clone(), behind].concat(), LARGE).unwrap_err();
        assert!(error.contains("cannot be decoded") && error.contains(reason), "{error}");
    }
}

#[test]
fn what_is_cut_off_or_damaged_is_refused() {
    let content = content();
    for wrap in [gz, xz, zst, bz2] {
        let whole = wrap(&content);
        assert!(opened(whole[..whole.len() - 1].to_vec(), LARGE).is_err(), "cut off");
        assert!(opened(whole[..whole.len() / 2].to_vec(), LARGE).is_err(), "cut in half");
    }
    // zstd as the library writes it here has no checksum; the others have.
    for wrap in [gz, xz, bz2] {
        let mut damaged = wrap(&content);
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x10;
        assert!(opened(damaged, LARGE).is_err());
    }
    for deflate in [false, true] {
        let mut damaged = zip(&[("disk.raw", &content)], deflate);
        damaged[500_000] ^= 0x10;
        let error = opened(damaged, LARGE).unwrap_err();
        assert!(
            error.contains("CRC-32") || error.contains("cannot be decoded"),
            "{error}"
        );
    }
}

#[test]
fn archives_hold_one_image() {
    let cases = [
        (tar(&[]), None),
        (tar(&[("README", b"x")]), Some("the archive holds no image")),
        (tar(&[("empty.raw", b"")]), Some("the archive holds no image")),
        (
            tar(&[("a.raw", b"x"), ("b.raw", b"y")]),
            Some("several files, of which one has to be the image: \"a.raw\", \"b.raw\""),
        ),
        (zip(&[("a.raw", b"x"), ("b.raw", b"y")], true), Some("several files")),
        (zip(&[("notes.txt", b"x")], true), Some("the archive holds no image")),
        (
            {
                let names: Vec<String> = (0..=Limits::DEFAULT.entries_max).map(|n| format!("{n}.raw")).collect();
                let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
                tar(&files)
            },
            Some("more than 1000 entries"),
        ),
        (
            {
                let names: Vec<String> = (0..=Limits::DEFAULT.entries_max).map(|n| format!("{n}.raw")).collect();
                let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
                zip(&files, false)
            },
            Some("more than 1000 entries"),
        ),
    ];
    for (bytes, expected) in cases {
        let Some(expected) = expected else {
            // Without an entry there is no magic number: it is a disk of zeros.
            assert!(opened(bytes, LARGE).is_ok());
            continue;
        };
        let error = opened(bytes, LARGE).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

fn mutated(mut bytes: Vec<u8>, at: usize, with: &[u8], fix_sum: bool) -> Vec<u8> {
    bytes[at..at + with.len()].copy_from_slice(with);
    if fix_sum {
        let mut header = ::tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
    }
    bytes
}

#[test]
fn forged_tar_headers_are_refused() {
    let whole = tar(&[("disk.raw", &[7; 2000])]);
    let cases = [
        (
            mutated(whole.clone(), 0, b"D", false),
            "the checksum of a tar header is wrong",
        ),
        (
            mutated(whole.clone(), 124, b"77777777777\0", true),
            "reaches beyond the end of the file",
        ),
        (mutated(whole.clone(), 124, &[0xff; 12], true), "reaches beyond the end"),
        (mutated(whole.clone(), 156, b"S", true), "a sparse file of GNU tar"),
        (
            mutated(mutated(whole.clone(), 124, b"00007777777\0", false), 156, b"L", true),
            "the length of an extended tar header 2097151 is more than 65536",
        ),
        (whole[..700].to_vec(), "reaches beyond the end of the file"),
        (mutated(whole, 156, b"5", true), "the archive holds no image"),
    ];
    for (bytes, expected) in cases {
        let error = opened(bytes, LARGE).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn forged_zip_directories_are_refused() {
    let whole = zip(&[("disk.raw", &[7; 2000])], false);
    assert!(opened(whole.clone(), LARGE).is_ok());
    let find = |magic: &[u8]| whole.windows(4).position(|window| window == magic).unwrap();
    let directory = find(b"PK\x01\x02");
    let end = find(b"PK\x05\x06");
    let with = |at: usize, bytes: &[u8]| mutated(whole.clone(), at, bytes, false);
    for (what, bytes) in [
        ("no end", whole[..end].to_vec()),
        ("the directory lies outside", with(end + 16, &u32::MAX.to_le_bytes())),
        (
            "the file lies outside",
            with(directory + 42, &0x7fff_ffff_u32.to_le_bytes()),
        ),
        (
            "the file is longer than the archive",
            with(directory + 20, &0x7fff_ffff_u32.to_le_bytes()),
        ),
        ("two lengths", with(directory + 24, &1_u32.to_le_bytes())),
        ("a file that is longer than the archive, by both its lengths", {
            let len = 0x7fff_ffff_u32.to_le_bytes();
            mutated(with(directory + 20, &len), directory + 24, &len, false)
        }),
        ("an unknown method", with(directory + 10, &99_u16.to_le_bytes())),
        ("encrypted", with(directory + 8, &1_u16.to_le_bytes())),
        ("another checksum", with(directory + 16, &[1, 2, 3, 4])),
    ] {
        let error = opened(bytes, LARGE).unwrap_err();
        assert!(!error.contains("cannot read"), "{what}: {error}");
    }
}

#[test]
fn folders_of_a_zip_count() {
    let mut archive = rawzip::ZipArchiveWriter::new(Vec::new());
    for number in 0..=Limits::DEFAULT.entries_max {
        archive.new_dir(format!("{number}/")).create().unwrap();
    }
    let error = opened(archive.finish().unwrap(), LARGE).unwrap_err();
    assert!(error.contains("more than 1000 entries"), "{error}");
}

const OVF: &str = r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/2" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/2">
  <References><File ovf:id="f1" ovf:href="disk1.vmdk"/></References>
  <DiskSection><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="1"/></DiskSection>
</Envelope>"#;

fn ova(descriptor: &str, manifest: Option<&str>) -> Vec<u8> {
    let content = content();
    let mut files = vec![("vm.ovf", descriptor.as_bytes()), ("disk1.vmdk", &content[..])];
    if let Some(manifest) = manifest {
        files.insert(1, ("vm.mf", manifest.as_bytes()));
    }
    // Another file, which nobody names: an ISO of drivers.
    files.push(("drivers.iso", b"drivers"));
    tar(&files)
}

fn digest<D: sha2::Digest>() -> String {
    hex::encode(D::digest(content()))
}

#[test]
fn an_ova_gives_the_disk_that_its_descriptor_names() {
    let (sha1, sha256) = (digest::<sha1::Sha1>(), digest::<sha2::Sha256>());
    for manifest in [
        None,
        Some(String::new()),
        Some(format!("SHA256(disk1.vmdk)= {sha256}\n")),
        Some(format!("SHA1 (disk1.vmdk) = {}\r\n\r\n", sha1.to_uppercase())),
    ] {
        let bytes = ova(OVF, manifest.as_deref());
        assert!(opened(bytes, LARGE).unwrap() == content(), "{manifest:?}");
    }
}

/// The parser takes the third power of the number of namespaces in each other, and the square of that of attributes.
#[test]
fn descriptors_that_take_long_to_parse_are_refused() {
    let namespaces = (0..20_000).fold(String::new(), |text, number| {
        text + &format!("<a xmlns:a{number}=\"b\">")
    });
    let attributes = (0..80_000).fold(String::from("<a"), |text, number| {
        text + &format!(" a{number:x} = \"\"")
    });
    for (descriptor, expected) in [
        (
            namespaces + &"</a>".repeat(20_000),
            "the number of namespaces 20000 is more than 32",
        ),
        (attributes + "/>", "the number of attributes 80000 is more than 256"),
    ] {
        let error = opened(ova(&descriptor, None), LARGE).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

/// As long-winded as descriptors may be: a namespace declared by every element, and a license with rules of equals signs.
#[test]
fn wordy_descriptors_are_read() {
    let items = "<Item xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2\"/>".repeat(2000);
    let license = format!("<License>{}</License>", "=".repeat(100_000));
    let descriptor = OVF.replace("</Envelope>", &format!("{items}{license}</Envelope>"));
    assert!(opened(ova(&descriptor, None), LARGE).unwrap() == content());
}

#[test]
fn ovas_that_contradict_themselves_are_refused() {
    let (other, sha256) = ("0".repeat(64), digest::<sha2::Sha256>());
    let cases = [
        (
            OVF.to_owned(),
            Some(format!("SHA256(disk1.vmdk)= {other}")),
            "has the SHA256 digest",
        ),
        (
            OVF.to_owned(),
            Some(format!("SHA256(disk2.vmdk)= {sha256}")),
            "which is not in the archive",
        ),
        (OVF.to_owned(), Some("disk1.vmdk".to_owned()), "is no digest of a file"),
        (
            OVF.to_owned(),
            Some(format!("MD5(disk1.vmdk)= {other}")),
            "is no digest of a file",
        ),
        (
            OVF.to_owned(),
            Some(format!("SHA256(disk1.vmdk)= {sha256}\nSHA256(disk1.vmdk)= {sha256}")),
            "the manifest has two SHA256 digests of \"disk1.vmdk\"",
        ),
        (
            OVF.replace("disk1.vmdk", "disk9.vmdk"),
            None,
            "which is not in the archive",
        ),
        (OVF.replace("disk1.vmdk", "../disk1.vmdk"), None, "reference denied"),
        (
            OVF.replace("disk1.vmdk", "http://host/disk1.vmdk"),
            None,
            "reference denied",
        ),
        (
            OVF.replace("fileRef=\"f1\"", "fileRef=\"f2\""),
            None,
            "has no file \"f2\"",
        ),
        (OVF.replace("ovf:fileRef=\"f1\"", ""), None, "names 0 disks"),
        (
            OVF.replace(
                "<DiskSection>",
                "<DiskSection><Disk ovf:diskId=\"d0\" ovf:fileRef=\"f1\"/>",
            ),
            None,
            "names 2 disks",
        ),
        (
            OVF.replace("ovf:href", "ovf:chunkSize=\"1\" ovf:href"),
            None,
            "into chunks",
        ),
        (
            OVF.replace("<Envelope", "<!DOCTYPE x [<!ENTITY a \"b\">]><Envelope"),
            None,
            "is no XML",
        ),
        (OVF.replace("</Envelope>", ""), None, "is no XML"),
        ("\u{0}".repeat(2 << 20), None, "is more than 1048576"),
    ];
    for (descriptor, manifest, expected) in cases {
        let error = opened(ova(&descriptor, manifest.as_deref()), LARGE).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

/// Which of two files of one name is meant, tools do not agree on: most unpack the last one.
#[test]
fn a_disk_that_is_in_an_archive_twice_is_refused() {
    let content = content();
    let files = [
        ("vm.ovf", OVF.as_bytes()),
        ("disk1.vmdk", &content),
        ("disk1.vmdk", b"other"),
    ];
    let error = opened(tar(&files), LARGE).unwrap_err();
    assert!(
        error.contains("the disk \"disk1.vmdk\", which is in the archive twice"),
        "{error}"
    );
}

/// A gzip header may hold any bytes as an extra field, such as those of a tar archive with another image.
#[test]
fn an_envelope_is_of_one_format() {
    let compressed = gz(&content());
    let archive = tar(&[("disk.raw", &content()[..512])]);
    let mut both = compressed[..3].to_vec();
    both.push(4);
    both.extend(&compressed[4..10]);
    both.extend(500_u16.to_le_bytes());
    both.extend(&archive[12..512]);
    both.extend(&compressed[10..]);
    let error = opened(both.clone(), LARGE).unwrap_err();
    assert!(error.contains("at byte 257: the file is gzip and tar"), "{error}");
    let refusal = crate::inspect(&both).unwrap().refusal.expect("it is refused");
    assert_eq!(refusal.reason, error);
}

#[test]
fn a_check_can_be_ended() {
    let bytes = ova(OVF, Some(&format!("SHA256(disk1.vmdk)= {}", digest::<sha2::Sha256>())));
    let source = source(bytes);
    let Some(Content::Part(part)) = unwrap(&source, &Limits::DEFAULT).unwrap() else {
        panic!("an OVA is a part");
    };
    assert_eq!(part.manifest.len(), 3 << 20);
    let mut steps = 0;
    let ended = part.manifest.check(&*source, |_| {
        steps += 1;
        steps < 2
    });
    assert_eq!((ended.unwrap_err().kind(), steps), (ErrorKind::Io, 2));
}

/// A source that fails after so many reads.
struct Failing {
    bytes: Vec<u8>,
    reads_left: AtomicUsize,
}

impl ReadAt for Failing {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let left = self
            .reads_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| io::Error::other("disk on fire"))?;
        self.bytes.read_exact_at(buf, offset)
    }
}

#[test]
fn a_source_that_fails_is_not_the_fault_of_the_archive() {
    let manifest = format!("SHA256(disk1.vmdk)= {}", digest::<sha2::Sha256>());
    for bytes in [
        tar(&[("disk.raw", &[7; 2000])]),
        ova(OVF, Some(&manifest)),
        zip(&[("disk.raw", &[7; 2000])], true),
    ] {
        let failures = (0..).map_while(|reads| {
            let bytes = bytes.clone();
            let reads_left = AtomicUsize::new(reads);
            let source: Arc<dyn ReadAt> = Arc::new(Failing { bytes, reads_left });
            unwrap(&source, &Limits::DEFAULT).err().map(|error| error.kind())
        });
        let failures: Vec<_> = failures.collect();
        assert!(failures.len() > 2, "more than the start of the file is read");
        assert!(failures.iter().all(|kind| *kind == ErrorKind::Io), "{failures:?}");
    }
}

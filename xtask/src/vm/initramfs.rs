//! A guest's file system: a cpio archive in the format "newc", which the kernel unpacks at boot.

use std::collections::BTreeSet;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Initramfs {
    /// Adds an ordinary file. `path` begins without a slash, here and below.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, (0, 0), content);
    }

    /// Adds a file that can be executed.
    pub(super) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// Adds a character device, by its major and minor number.
    pub(super) fn device(&mut self, path: &str, number: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE, number, &[]);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.header_and_content("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        for (end, _) in path.match_indices('/') {
            if self.directories.insert(path[..end].to_owned()) {
                self.header_and_content(&path[..end], DIRECTORY, (0, 0), &[]);
            }
        }
        self.header_and_content(path, mode, device, content);
    }

    fn header_and_content(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).expect("a file below 4 GiB");
        let name_length = u32::try_from(path.len() + 1).expect("a short name");
        let (owner, group, links, time) = (0, 0, 1, 0);
        self.bytes.extend_from_slice(b"070701");
        for field in [
            self.entries, // inode
            mode,
            owner,
            group,
            links,
            time,
            length,
            0, // the device that the file was on
            0,
            device.0,
            device.1,
            name_length,
            0, // no checksum in this format
        ] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Initramfs;

    #[test]
    fn a_file_follows_its_directories_on_four_byte_boundaries() {
        let mut archive = Initramfs::default();
        archive.file("a/b/file", b"hello");
        archive.file("a/other", b"");
        let bytes = archive.finish();
        let text = String::from_utf8(bytes.clone()).expect("ASCII");
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let names: Vec<&str> =
            starts.iter().map(|at| text[at + 110..].split('\0').next().expect("a name")).collect();
        assert_eq!(names, ["a", "a/b", "a/b/file", "a/other", "TRAILER!!!"]);
        assert!(text.contains("a/b/file\0\0hello\0\0\x00070701"), "{text:?}");
        assert_eq!(bytes.len() % 4, 0);
    }
}

//! The numbers of kernel functions, by which an XDP program calls them: from the kernel's own type information (BTF,
//! Documentation/bpf/btf.rst), which is a header, a list of types and their names. Read once; what does not fit is "not
//! known".

use std::sync::OnceLock;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u32 = 0xeb9f;
const KIND_FUNC: u32 = 12;
/// Bytes of a type before what its kind adds.
const TYPE_BYTES: usize = 12;

/// The number of the function with which a program asks for the VLAN tag beside a frame (Linux 6.8).
pub(super) fn rx_vlan_tag() -> Option<u32> {
    static NUMBER: OnceLock<Option<u32>> = OnceLock::new();
    *NUMBER.get_or_init(|| function(&std::fs::read(VMLINUX).ok()?, b"bpf_xdp_metadata_rx_vlan_tag"))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A part of the data after the header, of which `at` in the header says where it begins and how long it is.
fn part(btf: &[u8], at: usize) -> Option<&[u8]> {
    let (offset, len) = (word(btf, at)? as usize, word(btf, at + 4)? as usize);
    let start = (word(btf, 4)? as usize).checked_add(offset)?;
    btf.get(start..start.checked_add(len)?)
}

fn function(btf: &[u8], name: &[u8]) -> Option<u32> {
    if word(btf, 0)? & 0xffff != MAGIC {
        return None;
    }
    let (types, names) = (part(btf, 8)?, part(btf, 16)?);
    let (mut at, mut number) = (0, 1);
    while at < types.len() {
        let info = word(types, at + 4)?;
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == KIND_FUNC {
            let own = names.get(word(types, at)? as usize..)?;
            if own.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
                return Some(number);
            }
        }
        at += TYPE_BYTES
            + match kind {
                // int, variable, tag of a declaration
                1 | 14 | 17 => 4,
                // array
                3 => 12,
                // struct, union, section, 64-bit enum
                4 | 5 | 15 | 19 => 12 * members,
                // enum, prototype of a function
                6 | 13 => 8 * members,
                // pointer, forward, typedef, qualifiers, function, float, tag of a type
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
        number += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, an int, a struct with two members, two functions; names "\0int\0other\0wanted\0wanted2\0".
    fn sample() -> Vec<u8> {
        let names = b"\0int\0other\0wanted\0wanted2\0";
        let types: &[u32] = &[
            1,
            1 << 24,
            4,
            0, //
            0,
            4 << 24 | 2,
            8,
            0,
            1,
            0,
            0,
            1,
            32, //
            18,
            12 << 24,
            1, //
            11,
            12 << 24,
            1,
        ];
        let header = [MAGIC | 1 << 16, 24, 0, types.len() as u32 * 4, types.len() as u32 * 4, names.len() as u32];
        let mut all: Vec<u8> = header.iter().chain(types).flat_map(|word| word.to_ne_bytes()).collect();
        all.extend(names);
        all
    }

    #[test]
    fn functions_are_found_by_their_whole_names_and_nonsense_is_bounded() {
        let sample = sample();
        assert_eq!(function(&sample, b"wanted2"), Some(3));
        assert_eq!(function(&sample, b"wanted"), Some(4));
        assert_eq!((function(&sample, b"int"), function(&sample, b"want")), (None, None));
        for len in 0..sample.len() {
            assert_eq!(function(&sample[..len], b"wanted"), None, "{len} bytes");
        }
    }
}

#![no_main]

use libfuzzer_sys::fuzz_target;
use vswitch_tests::fuzz::fuzz_frame;

fuzz_target!(|data: &[u8]| fuzz_frame(data));

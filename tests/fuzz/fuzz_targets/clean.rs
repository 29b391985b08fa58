#![no_main]

use libfuzzer_sys::fuzz_target;
use vswitch_tests::fuzz::fuzz_clean;

fuzz_target!(|data: &[u8]| fuzz_clean(data));

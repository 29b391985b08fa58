#![no_main]

use libfuzzer_sys::fuzz_target;
use vswitch_tests::fuzz::fuzz_api;

fuzz_target!(|data: &[u8]| fuzz_api(data));

#![no_main]

use libfuzzer_sys::fuzz_target;
use vswitch_tests::fuzz_vhost::fuzz_vhost;

fuzz_target!(|data: &[u8]| fuzz_vhost(data));

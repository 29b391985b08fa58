#![no_main]

use libfuzzer_sys::fuzz_target;
use vswitch_tests::fuzz::fuzz_config;

fuzz_target!(|text: &str| fuzz_config(text));

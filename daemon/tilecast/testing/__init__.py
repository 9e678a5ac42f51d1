"""What tests of tilecast and of its plugins are made with: fakes, suites, frames that know themselves."""

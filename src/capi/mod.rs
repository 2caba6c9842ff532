//! extern "C".

//! The business process's half of a secure tunnel: MQTT messages tell a device which tunnel to open.

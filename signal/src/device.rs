//! Which device this is, and the topics that follow from it.

use crate::error::{Error, Result};

/// Most characters of a product key or a device name. The platform allows 32.
const MOST: usize = 64;

/// A device of the platform: its ProductKey and its DeviceName. They name the topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    product_key: String,
    device_name: String,
}

impl Device {
    /// Checks both names: 1 to 64 letters, digits and `-_.:@`.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the field.
    pub fn new(product_key: &str, device_name: &str) -> Result<Self> {
        check("product key", product_key)?;
        check("device name", device_name)?;
        Ok(Device { product_key: product_key.to_owned(), device_name: device_name.to_owned() })
    }

    /// The ProductKey.
    pub fn product_key(&self) -> &str {
        &self.product_key
    }

    /// The DeviceName.
    pub fn device_name(&self) -> &str {
        &self.device_name
    }

    /// The topic on which the platform tells of tunnels.
    pub fn notify_topic(&self) -> String {
        self.topic("notify")
    }

    /// The topic on which the device asks for connection data.
    pub fn request_topic(&self) -> String {
        self.topic("proxy/request")
    }

    /// The topic on which the platform answers.
    pub fn reply_topic(&self) -> String {
        self.topic("proxy/request_reply")
    }

    fn topic(&self, end: &str) -> String {
        format!("/sys/{}/{}/secure_tunnel/{end}", self.product_key, self.device_name)
    }
}

/// Other characters would change the meaning of a topic (`/+#`) or of the sign-in (`&|,`).
fn check(field: &'static str, name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    match name.len() {
        1..=MOST if name.chars().all(is_allowed) => Ok(()),
        1..=MOST => Err(Error::invalid(field, "only letters, digits and -_.:@ are allowed")),
        0 => Err(Error::invalid(field, "must not be empty")),
        _ => Err(Error::invalid(field, format!("has more than {MOST} characters"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_are_the_platforms() {
        let device = Device::new("a1pk", "dev_1").unwrap();
        assert_eq!(device.notify_topic(), "/sys/a1pk/dev_1/secure_tunnel/notify");
        assert_eq!(device.request_topic(), "/sys/a1pk/dev_1/secure_tunnel/proxy/request");
        assert_eq!(device.reply_topic(), "/sys/a1pk/dev_1/secure_tunnel/proxy/request_reply");
    }

    #[test]
    fn no_name_can_reach_another_devices_topics() {
        for bad in ["", "a/b", "+", "#", "a b", "a&b", "a|b", "é", &"x".repeat(65)] {
            assert!(Device::new(bad, "d").is_err() && Device::new("p", bad).is_err(), "{bad:?}");
        }
    }
}

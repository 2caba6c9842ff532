//! Networks, as options and files name them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address, or a network: `192.0.2.1`, `10.0.0.0/8`, `2001:db8::/32`. An IPv4 address in the form of
/// an IPv6 address is the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    bits: u32,
}

/// Why a text is no [`Subnet`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSubnet(String);

impl Subnet {
    /// Whether the address is in the network.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        masked(ip.to_canonical(), self.bits) == Some(self.address)
            && ip.to_canonical().is_ipv4() == self.address.is_ipv4()
    }
}

/// The first bits of an address. `None` if it has fewer.
fn masked(ip: IpAddr, bits: u32) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32u32.checked_sub(bits)?).unwrap_or(0);
            Some(Ipv4Addr::from_bits(v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128u32.checked_sub(bits)?).unwrap_or(0);
            Some(Ipv6Addr::from_bits(v6.to_bits() & mask).into())
        }
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let form = || {
            InvalidSubnet(format!(
                "{text:?} is not an address or a network, such as 192.0.2.1 or 10.0.0.0/8"
            ))
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            // `parse` takes a sign.
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| form())?
            }
            Some(_) => return Err(form()),
            None => most,
        };
        let network = masked(address, bits).ok_or_else(|| {
            InvalidSubnet(format!("{text:?}: an address of this kind has {most} bits"))
        })?;
        if network != address {
            return Err(InvalidSubnet(format!(
                "{text:?} has address bits behind the network's: write {network}/{bits}, or {address}"
            )));
        }
        Ok(match (network, network.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) if bits >= 96 => {
                Subnet { address: v4, bits: bits - 96 }
            }
            _ => Subnet { address: network, bits },
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.0/25", "192.0.2.127", "192.0.2.128"),
            ("192.0.2.0/24", "::ffff:192.0.2.9", "::ffff:192.0.3.9"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("::1", "::1", "::2"),
            ("::ffff:192.0.2.0/120", "192.0.2.3", "192.0.3.3"),
            ("::ffff:192.0.2.1", "192.0.2.1", "::192.0.2.1"),
        ] {
            let subnet: Subnet = network.parse().unwrap();
            assert!(subnet.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!subnet.contains(outside.parse().unwrap()), "{network} {outside}");
            assert_eq!(subnet.to_string().parse(), Ok(subnet));
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_form_that_is_right() {
        for wrong in [
            "",
            "host",
            "10.0.0.0/",
            "10.0.0.0/x",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "1.2.3",
        ] {
            let error = wrong.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains("such as 192.0.2.1 or 10.0.0.0/8"), "{error}");
        }
        let error = |text: &str| text.parse::<Subnet>().unwrap_err().to_string();
        assert!(error("10.0.0.0/33").contains("has 32 bits"));
        assert!(error("::/129").contains("has 128 bits"));
        assert!(error("10.0.0.1/8").contains("write 10.0.0.0/8, or 10.0.0.1"));
        assert!(error("10.0.0.0/99999999999").contains("such as"));
    }
}

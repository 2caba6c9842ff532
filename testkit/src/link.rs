//! A slow link between a device and the rest of the world: three network namespaces, of which the
//! middle one is a router with a rate limit in each direction. It needs root and Linux's token bucket
//! filter, and leaves nothing behind.
//!
//! The rate limit is not on the device itself. The kernel limits what a socket queues in front of
//! its own interface, but knows nothing of a queue in a modem or in a provider's network, and that is
//! where the queue of a slow link usually is.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::namespaces::Namespace;

/// device 10.77.1.2 - 10.77.1.1 router 10.77.2.1 - 10.77.2.2 cloud
pub const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
pub const CLOUD: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);

/// An Ethernet frame of a full packet, in bytes.
const FRAME: u64 = 1514;
/// The router's queue holds so much of the link's time, unless told otherwise ...
pub const QUEUE: Duration = Duration::from_millis(200);
/// ... but at least so many full packets. TCP needs a few of them in flight to notice a loss in time.
const QUEUE_FRAMES: u64 = 8;
/// How many bytes may pass at once after a pause: two packets.
const BURST: u64 = 2 * FRAME;

pub struct Link {
    pub device: Namespace,
    router: Namespace,
    pub cloud: Namespace,
}

/// The length of a router's queue that holds so much time, in bytes.
pub fn queue_length(bits_per_second: u64, queue: Duration) -> u64 {
    (bits_per_second / 8 * queue.as_millis() as u64 / 1000).max(QUEUE_FRAMES * FRAME)
}

impl Link {
    /// # Errors
    /// This machine does not allow it; the text says what failed.
    pub fn new(bits_per_second: u64) -> Result<Self, String> {
        Link::with_queue(bits_per_second, QUEUE)
    }

    /// `queue`: the time that the router's queue holds in each direction.
    ///
    /// # Errors
    /// As [`new`](Link::new).
    pub fn with_queue(bits_per_second: u64, queue: Duration) -> Result<Self, String> {
        let make = || Namespace::new().map_err(|e| format!("make a namespace: {e}"));
        let link = Link { device: make()?, router: make()?, cloud: make()? };
        let (device, router, cloud) = (&link.device, &link.router, &link.cloud);
        let there = router.path();
        device.try_ip(&format!("link add wan type veth peer name lan netns {there}"))?;
        cloud.try_ip(&format!("link add net type veth peer name net netns {there}"))?;
        for (namespace, name, address) in [
            (device, "wan", "10.77.1.2/24"),
            (router, "lan", "10.77.1.1/24"),
            (router, "net", "10.77.2.1/24"),
            (cloud, "net", "10.77.2.2/24"),
        ] {
            namespace.try_ip("link set lo up")?;
            namespace.try_ip(&format!("addr add {address} dev {name}"))?;
            namespace.try_ip(&format!("link set {name} up"))?;
        }
        device.try_ip("route add default via 10.77.1.1")?;
        cloud.try_ip("route add default via 10.77.2.1")?;
        let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        router.within(forward).map_err(|e| format!("let the router forward: {e}"))?;
        for name in ["lan", "net"] {
            let limit = queue_length(bits_per_second, queue);
            router.try_run(
                "tc",
                &format!(
                    "qdisc add dev {name} root tbf rate {bits_per_second}bit burst {BURST} limit {limit}"
                ),
            )?;
        }
        Ok(link)
    }
}

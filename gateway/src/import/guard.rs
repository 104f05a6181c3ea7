//! Which addresses may be fetched from.
//!
//! A server sits where its users do not: beside metadata services, on private networks, on its own loopback. An import
//! that reached those would hand out what they say. So only addresses of the public internet are fetched from, and those
//! that the configuration allows.
//!
//! The [`Guard`] is the resolver of the client: it hands the connector only addresses that it has checked, so there is no
//! second lookup that could answer otherwise. Literal addresses in URLs never see a resolver; [`Guard::check_url`] is for
//! them. Both are asked on every redirect.
//!
//! Source: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Tells addresses that may be fetched from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    allow: Vec<IpNet>,
}

/// An address was asked for that may not be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}, which imports may not fetch from unless --import-allow {} allows it", self.subject(), IpNet::from(*.addr))]
pub(crate) struct Refused {
    /// As in the URL.
    host: String,
    addr: IpAddr,
    /// What the address is.
    what: &'static str,
}

impl Refused {
    fn subject(&self) -> String {
        let Self { host, addr, .. } = self;
        if host.trim_matches(['[', ']']) == addr.to_string() {
            format!("{addr} is ")
        } else {
            format!("{host} is at {addr}, ")
        }
    }
}

impl Guard {
    /// Refuses what is not of the public internet, but for `allow`.
    pub(crate) fn new(allow: &[IpNet]) -> Self {
        Self { allow: allow.to_vec() }
    }

    /// Checks an address that `host` stands for.
    pub(crate) fn check(&self, host: &str, addr: IpAddr) -> Result<(), Refused> {
        match self.refusal(addr) {
            None => Ok(()),
            Some(what) => Err(Refused {
                host: host.to_owned(),
                addr,
                what,
            }),
        }
    }

    /// Checks the address in `url`, if it has one in place of a name.
    pub(crate) fn check_url(&self, url: &Url) -> Result<(), Refused> {
        match url.host() {
            Some(Host::Ipv4(addr)) => self.check(url.host_str().unwrap_or_default(), addr.into()),
            Some(Host::Ipv6(addr)) => self.check(url.host_str().unwrap_or_default(), addr.into()),
            Some(Host::Domain(_)) | None => Ok(()),
        }
    }

    /// What `addr` is, if it may not be fetched from.
    fn refusal(&self, addr: IpAddr) -> Option<&'static str> {
        if self.allow.iter().any(|net| net.contains(&addr)) {
            return None;
        }
        match addr {
            IpAddr::V4(addr) => SPECIAL_V4
                .iter()
                .find(|(net, _)| net.contains(&addr))
                .map(|(_, what)| *what),
            IpAddr::V6(addr) => match (SPECIAL_V6.iter().find(|(net, _)| net.contains(&addr)), embedded(addr)) {
                (Some((_, what)), _) => Some(what),
                (None, Some(inner)) => self.refusal(inner.into()),
                (None, None) => (!GLOBAL_UNICAST.contains(&addr)).then_some("not an address of the public internet"),
            },
        }
    }

    /// The addresses of `host` that may be fetched from, of which there is at least one.
    async fn lookup(&self, host: &str) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let mut allowed = Vec::new();
        let mut refused = None;
        for addr in tokio::net::lookup_host((host, 0)).await? {
            match self.check(host, addr.ip()) {
                Ok(()) => allowed.push(addr),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match refused {
            _ if !allowed.is_empty() => Ok(allowed),
            Some(refused) => Err(refused.into()),
            None => Err(format!("{host} has no address").into()),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move { Ok(Box::new(guard.lookup(name.as_str()).await?.into_iter()) as Addrs) })
    }
}

/// The IPv4 address that an IPv6 address stands for: a translator or tunnel takes packets for it there.
fn embedded(addr: Ipv6Addr) -> Option<Ipv4Addr> {
    // Compatible and mapped (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052), 6to4 (RFC 3056).
    let ([0, 0, 0, 0, 0, 0 | 0xffff, high, low]
    | [0, 0, 0, 0, 0xffff, 0, high, low]
    | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
    | [0x2002, high, low, ..]) = addr.segments()
    else {
        return None;
    };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

const fn v6(a: u16, b: u16, c: u16, prefix_len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix_len)
}

/// The first that holds an address says what it is.
const SPECIAL_V4: [(Ipv4Net, &str); 17] = [
    (v4(0, 0, 0, 0, 8), "an address of this host"),
    (v4(10, 0, 0, 0, 8), PRIVATE),
    (v4(100, 64, 0, 0, 10), "an address shared behind a carrier's NAT"),
    (v4(127, 0, 0, 0, 8), LOOPBACK),
    (v4(168, 63, 129, 16, 32), METADATA),
    (v4(169, 254, 169, 254, 32), METADATA),
    (v4(169, 254, 0, 0, 16), LINK_LOCAL),
    (v4(172, 16, 0, 0, 12), PRIVATE),
    (v4(192, 0, 0, 0, 24), RESERVED),
    (v4(192, 0, 2, 0, 24), DOCUMENTATION),
    (v4(192, 88, 99, 0, 24), RESERVED),
    (v4(192, 168, 0, 0, 16), PRIVATE),
    (v4(198, 18, 0, 0, 15), "an address for benchmarks"),
    (v4(198, 51, 100, 0, 24), DOCUMENTATION),
    (v4(203, 0, 113, 0, 24), DOCUMENTATION),
    (v4(224, 0, 0, 0, 4), MULTICAST),
    (v4(240, 0, 0, 0, 4), RESERVED), // and broadcast
];

const SPECIAL_V6: [(Ipv6Net, &str); 11] = [
    (
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128),
        "an address of this host",
    ),
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), LOOPBACK),
    (v6(0x64, 0xff9b, 1, 48), PRIVATE), // local NAT64 (RFC 8215)
    (v6(0x2001, 0, 0, 23), RESERVED),   // Teredo, benchmarks, ORCHID and other protocols
    (v6(0x2001, 0xdb8, 0, 32), DOCUMENTATION),
    (v6(0x3fff, 0, 0, 20), DOCUMENTATION),
    (
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
        METADATA,
    ),
    (v6(0xfc00, 0, 0, 7), PRIVATE),
    (v6(0xfe80, 0, 0, 10), LINK_LOCAL),
    (v6(0xfec0, 0, 0, 10), PRIVATE), // site-local, deprecated
    (v6(0xff00, 0, 0, 8), MULTICAST),
];

/// All of the public internet's IPv6 addresses so far.
const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);

const DOCUMENTATION: &str = "an address for examples in documentation";
const LINK_LOCAL: &str = "a link-local address";
const LOOPBACK: &str = "a loopback address";
const METADATA: &str = "the address of a metadata service";
const MULTICAST: &str = "a multicast address";
const PRIVATE: &str = "an address of a private network";
const RESERVED: &str = "a reserved address";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_public_internet_are_fetched_from() {
        let good = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
            "3ffe::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ];
        let guard = Guard::default();
        for addr in good {
            assert_eq!(guard.check("h", addr.parse().unwrap()), Ok(()), "{addr}");
        }
    }

    #[test]
    fn all_other_addresses_are_refused() {
        let bad = [
            ("0.0.0.0", "this host"),
            ("0.1.2.3", "this host"),
            ("10.0.0.1", PRIVATE),
            ("10.255.255.255", PRIVATE),
            ("100.64.0.0", "carrier"),
            ("100.100.100.200", "carrier"),
            ("100.127.255.255", "carrier"),
            ("127.0.0.1", LOOPBACK),
            ("127.255.255.254", LOOPBACK),
            ("168.63.129.16", METADATA),
            ("169.254.169.254", METADATA),
            ("169.254.0.1", LINK_LOCAL),
            ("172.16.0.1", PRIVATE),
            ("172.31.255.255", PRIVATE),
            ("192.0.0.192", RESERVED),
            ("192.0.2.1", DOCUMENTATION),
            ("192.168.1.1", PRIVATE),
            ("198.18.0.1", "benchmarks"),
            ("198.19.255.255", "benchmarks"),
            ("198.51.100.1", DOCUMENTATION),
            ("203.0.113.1", DOCUMENTATION),
            ("224.0.0.1", MULTICAST),
            ("240.0.0.1", RESERVED),
            ("255.255.255.255", RESERVED),
            ("::", "this host"),
            ("::1", LOOPBACK),
            ("fe80::1", LINK_LOCAL),
            ("fc00::1", PRIVATE),
            ("fd00:ec2::254", METADATA),
            ("fd12:3456::1", PRIVATE),
            ("fec0::1", PRIVATE),
            ("ff02::1", MULTICAST),
            ("2001:db8::1", DOCUMENTATION),
            ("3fff::1", DOCUMENTATION),
            ("2001::1", RESERVED),
            ("2001:2::1", RESERVED),
            ("100::1", "not an address"),
            ("4000::1", "not an address"),
            ("5f00::1", "not an address"),
            // IPv4 in disguise.
            ("::127.0.0.1", LOOPBACK),
            ("::ffff:127.0.0.1", LOOPBACK),
            ("::ffff:169.254.169.254", METADATA),
            ("::ffff:0:10.0.0.1", PRIVATE),
            ("64:ff9b::192.168.0.1", PRIVATE),
            ("64:ff9b:1::8.8.8.8", PRIVATE),
            ("2002:7f00:1::", LOOPBACK),
            ("2002:a9fe:a9fe::1", METADATA),
        ];
        let guard = Guard::default();
        for (addr, what) in bad {
            let refused = guard.check("h", addr.parse().unwrap()).expect_err(addr);
            assert!(refused.what.contains(what), "{addr}: {refused}");
        }
    }

    #[test]
    fn configuration_allows_what_it_names_and_no_more() {
        let guard = Guard::new(&["127.0.0.1/32".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        for addr in [
            "127.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "fd00:ec2::254",
            "8.8.8.8",
        ] {
            assert_eq!(guard.check("h", addr.parse().unwrap()), Ok(()), "{addr}");
        }
        for addr in ["127.0.0.2", "::ffff:127.0.0.2", "::1", "fc00::1", "10.0.0.1"] {
            assert!(guard.check("h", addr.parse().unwrap()).is_err(), "{addr}");
        }
    }

    #[test]
    fn addresses_in_urls_are_seen_in_every_spelling() {
        let guard = Guard::default();
        let spellings = [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://2130706433/",
            "http://127.0.0.1./",
            "http://u:p@127.0.0.1:8080/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://%31%32%37.0.0.1/",
            "http://①②⑦.0.0.1/",
        ];
        for spelling in spellings {
            let refused = guard.check_url(&Url::parse(spelling).unwrap()).expect_err(spelling);
            assert_eq!(refused.what, LOOPBACK, "{spelling}");
        }
        for good in ["http://1.1.1.1/", "http://[2606:4700::1111]/", "http://example.org/"] {
            assert_eq!(guard.check_url(&Url::parse(good).unwrap()), Ok(()), "{good}");
        }
    }

    #[test]
    fn refusals_say_what_would_allow_them() {
        let guard = Guard::default();
        let text = |host, addr: &str| guard.check(host, addr.parse().unwrap()).unwrap_err().to_string();
        assert_eq!(
            text("intranet", "10.1.2.3"),
            "intranet is at 10.1.2.3, an address of a private network, which imports may not fetch from unless \
             --import-allow 10.1.2.3/32 allows it"
        );
        assert!(text("127.0.0.1", "127.0.0.1").starts_with("127.0.0.1 is a loopback address, which"));
        assert!(text("[::1]", "::1").contains("::1 is a loopback address") && text("[::1]", "::1").contains("::1/128"));
    }

    #[tokio::test]
    async fn names_are_worth_what_they_resolve_to() {
        let refused = Guard::default().lookup("localhost").await.unwrap_err();
        assert_eq!(refused.downcast_ref::<Refused>().unwrap().what, LOOPBACK);
        let allowing = Guard::new(&["127.0.0.1/32".parse().unwrap()]);
        let addrs = allowing.lookup("localhost").await.unwrap();
        assert!(
            addrs.iter().all(|addr| addr.ip() == IpAddr::from([127, 0, 0, 1])),
            "{addrs:?}"
        );
    }
}

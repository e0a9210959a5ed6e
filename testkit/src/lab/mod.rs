//! The namespace lab: networks made of namespaces, with real servers, clients and gateways.
//!
//! | module | lives there |
//! |---|---|
//! | [`process`] | programs with a time limit, and what they print |
//! | [`topology`] | hosts, links and addresses as data; the stock networks |
//! | [`net`] | a topology brought to life, and its removal however the test ends |
//! | [`rules`] | the user's own firewall and NAT rules, snapshots of them, conntrack counters |
//! | [`activity`] | what a process does while nothing happens |
//! | [`alg`] | what stands on the gateway: nothing, the kernel's helper, `ftpalg` |
//! | [`gateway`] | a published server behind `ftpalg`, sessions line by line |
//! | [`session`] | a control connection of which a test is both ends |
//! | [`capture`] | what passes an interface |
//! | [`craft`] | one end of a connection made of raw packets |
//! | [`counters`] | what a host's TCP has counted |
//! | [`server`], [`client`] | real FTP programs, each with its own way of being told what to do |
//! | [`programs`] | more of them, each told what to do by a script |
//! | [`scripted`] | a client and a server that cut their lines as they are told |
//! | [`scenario`] | all of it together, and what is expected with and without an ALG |
//! | [`stations`] | networks with any gateways, clients and servers, run with each backend |
//! | [`pair`] | two gateways, of which one takes over from the other |
//! | [`store`] | a Valkey or Redis server |
//! | [`system`] | systemd on a host of the lab, with a root file system of its own |
//! | [`weather`] | a router that loses, delays, swaps and repeats packets |
//! | [`root`] | a root file system with nothing but `ftpalg` in it |
//! | [`report`] | tables for people, in `target/lab-report/` |
//!
//! Nothing here touches the host's own network: every packet stays in namespaces of the lab.

pub mod activity;
pub mod alg;
pub mod capture;
pub mod client;
pub mod counters;
pub mod craft;
pub mod gateway;
pub mod net;
pub mod pair;
pub mod process;
pub mod programs;
pub mod report;
pub mod root;
pub mod rules;
pub mod scenario;
pub mod scripted;
pub mod server;
pub mod session;
pub mod stations;
pub mod store;
pub mod system;
pub mod topology;
pub mod weather;

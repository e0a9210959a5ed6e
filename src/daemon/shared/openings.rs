//! Pinholes that open together.
//!
//! With the backend iptables, a change of the kernel's rules takes some hundred microseconds, or many
//! milliseconds, however many rules it adds. So a packet that needs a pinhole is put off, and so are those
//! of other sessions that come meanwhile; then all their pinholes open in one change, and the packets come
//! again. What each of them was promised is kept here, so that it is given the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::Shared;
use crate::engine::event::Event;
use crate::engine::gateway::{Error, PinholeId, Request, Reservation};

/// How often a packet is put off. One that asks for still more pinholes waits for each of them.
const TIMES: u32 = 4;

/// What packets wait for, by the queue's numbers of these.
#[derive(Debug, Default)]
pub struct Openings {
    of_packet: HashMap<u32, Wishes>,
}

/// What a packet asks for while it may be put off.
#[derive(Debug, Default)]
pub struct Wishes {
    holes: Vec<Wish>,
    /// What it has told. If it is put off, that didn't happen.
    events: Vec<Event>,
    times: u32,
    /// It may be put off now.
    can_wait: bool,
    /// When it came first, where somebody wants to know.
    came: Option<Duration>,
}

/// A pinhole.
#[derive(Debug)]
struct Wish {
    id: PinholeId,
    /// What it was reserved for, if it was by this packet.
    request: Option<(Request, Reservation)>,
    state: WishState,
    /// The packet has asked for it since it came, or came again.
    asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum WishState {
    Reserved,
    /// It is to be opened.
    Wanted,
    /// It was, or couldn't be.
    Opened(Result<(), Error>),
}

impl Openings {
    /// A packet comes, or comes again.
    pub fn take(&mut self, packet: u32) -> Wishes {
        let mut wishes = self.of_packet.remove(&packet).unwrap_or_default();
        wishes.can_wait = false;
        for wish in &mut wishes.holes {
            wish.asked = false;
        }
        wishes
    }

    /// It is put off.
    pub fn put_off(&mut self, packet: u32, mut wishes: Wishes) {
        wishes.events.clear();
        // One that waits behind another has asked for nothing.
        let asked = u32::from(!wishes.holes.is_empty());
        wishes.times = wishes.times.saturating_add(asked);
        self.of_packet.insert(packet, wishes);
    }

    /// When a packet that was put off came first, if that was noted.
    pub fn came(&self, packet: u32) -> Option<Duration> {
        self.of_packet.get(&packet)?.came
    }

    /// Notes when a packet that was put off came first. Does nothing for other packets.
    pub fn note(&mut self, packet: u32, came: Duration) {
        if let Some(wishes) = self.of_packet.get_mut(&packet) {
            wishes.came = Some(came);
        }
    }

    /// Opens all that is wanted.
    pub fn open(&mut self, shared: &Shared) {
        let wanted = self.wanted();
        let ids: Vec<_> = wanted.iter().map(|wish| wish.id).collect();
        for (wish, opened) in wanted.into_iter().zip(shared.open_together(&ids)) {
            wish.state = WishState::Opened(opened);
        }
    }

    /// How many pinholes are to be opened for a peer.
    pub(super) fn wanted_for(&self, peer: IpAddr) -> usize {
        let holes = self.of_packet.values().flat_map(|wishes| &wishes.holes);
        let wanted = holes.filter(|wish| wish.state == WishState::Wanted);
        let is_for = |wish: &&Wish| {
            let request = wish.request.as_ref();
            request.is_some_and(|(request, _)| request.from == peer)
        };
        wanted.filter(is_for).count()
    }

    /// What is to be opened, in the order in which it was reserved.
    fn wanted(&mut self) -> Vec<&mut Wish> {
        let wishes = self.of_packet.values_mut();
        let holes = wishes.flat_map(|wishes| &mut wishes.holes);
        let mut wanted: Vec<_> = holes
            .filter(|wish| wish.state == WishState::Wanted)
            .collect();
        wanted.sort_by_key(|wish| wish.id);
        wanted
    }
}

impl Wishes {
    /// Whether it may be put off once more; `undoable`: what it changes can be undone.
    pub(super) fn may_put_off(&mut self, undoable: bool) -> bool {
        self.can_wait = undoable && self.times < TIMES;
        self.can_wait
    }

    /// What was answered last.
    pub(super) fn can_wait(&self) -> bool {
        self.can_wait
    }

    /// The port that was chosen for a request before.
    pub(super) fn reserved(&mut self, request: &Request) -> Option<Reservation> {
        self.holes.iter_mut().find_map(|wish| {
            let (asked, reserved) = wish.request.as_ref()?;
            if wish.asked || asked != request {
                return None;
            }
            wish.asked = true;
            Some(*reserved)
        })
    }

    /// A port was chosen.
    pub(super) fn reserve(&mut self, request: &Request, reserved: Reservation) {
        self.holes.push(Wish {
            id: reserved.id,
            request: Some((request.clone(), reserved)),
            state: WishState::Reserved,
            asked: true,
        });
    }

    /// Whether a pinhole could be opened; [`Error::Later`] if that is to be tried. `None`: the packet can't wait,
    /// so that it is to be opened at once.
    pub(super) fn open(&mut self, id: PinholeId) -> Option<Result<(), Error>> {
        let can_wait = self.can_wait;
        let known = self.holes.iter_mut().find(|wish| wish.id == id);
        let Some(wish) = known else {
            self.holes.push(Wish {
                id,
                request: None,
                state: WishState::Wanted,
                asked: true,
            });
            return can_wait.then_some(Err(Error::Later));
        };
        wish.asked = true;
        if let WishState::Opened(opened) = &wish.state {
            return Some(opened.clone());
        }
        wish.state = WishState::Wanted;
        can_wait.then_some(Err(Error::Later))
    }

    /// Something that happens if the packet isn't put off.
    pub(super) fn tell(&mut self, event: Event) {
        self.events.push(event);
    }

    /// It has been decided on. Returns what it has told, and the pinholes that it reserved and doesn't ask for
    /// any more.
    pub(super) fn settle(self) -> (Vec<Event>, impl Iterator<Item = PinholeId>) {
        let unasked = self.holes.into_iter().filter(|wish| !wish.asked);
        // One that was reserved before belongs to its session still.
        let own = unasked.filter(|wish| wish.request.is_some());
        (self.events, own.map(|wish| wish.id))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::engine::gateway::SessionId;
    use crate::ftp::Mode;
    use crate::ftp::fit::Fitting;

    fn request(port: u16) -> Request {
        let ip: IpAddr = [10, 0, 0, 2].into();
        Request {
            session: SessionId(1),
            mode: Mode::Passive,
            from: [203, 0, 113, 10].into(),
            to: [198, 51, 100, 1].into(),
            land: SocketAddr::new(ip, port),
            as_source: None,
            mark: 0,
            published: true,
            from_range: true,
            fitting: Fitting::ANY,
            twin: None,
        }
    }

    /// The packet with number 7 comes, or comes again, and may be put off.
    fn take(openings: &mut Openings) -> Wishes {
        let mut wishes = openings.take(7);
        wishes.may_put_off(true);
        wishes
    }

    /// It asks for a pinhole; whether that is open.
    fn asks(wishes: &mut Wishes, port: u16) -> Option<Result<(), Error>> {
        let request = request(port);
        let reserved = wishes.reserved(&request).unwrap_or_else(|| {
            let id = PinholeId(u64::from(port));
            let reserved = Reservation {
                id,
                to: SocketAddr::new(request.to, port),
            };
            wishes.reserve(&request, reserved);
            reserved
        });
        wishes.open(reserved.id)
    }

    /// What [`Openings::open`] does, with an answer for all.
    fn opens(openings: &mut Openings, answer: &Result<(), Error>) -> Vec<u64> {
        let wanted = openings.wanted();
        let ids = wanted.iter().map(|wish| wish.id.0).collect();
        for wish in wanted {
            wish.state = WishState::Opened(answer.clone());
        }
        ids
    }

    fn unasked(wishes: Wishes) -> Vec<u64> {
        wishes.settle().1.map(|id| id.0).collect()
    }

    #[test]
    fn a_packet_that_comes_again_is_given_what_it_was_promised() {
        for answer in [Ok(()), Err(Error::Kernel("no".into()))] {
            let mut openings = Openings::default();
            let mut wishes = take(&mut openings);
            assert_eq!(asks(&mut wishes, 1), Some(Err(Error::Later)));
            openings.put_off(7, wishes);
            assert_eq!(opens(&mut openings, &answer), [1]);
            // Another one follows in the same packet.
            let mut wishes = take(&mut openings);
            assert_eq!(asks(&mut wishes, 1), Some(answer.clone()));
            assert_eq!(asks(&mut wishes, 2), Some(Err(Error::Later)));
            openings.put_off(7, wishes);
            assert_eq!(
                opens(&mut openings, &answer),
                [2],
                "not the first one again"
            );
            let mut wishes = take(&mut openings);
            for port in [1, 2] {
                assert_eq!(asks(&mut wishes, port), Some(answer.clone()));
            }
            assert!(openings.of_packet.is_empty() && unasked(wishes).is_empty());
        }
    }

    #[test]
    fn what_others_ask_for_is_counted_by_peer() {
        let mut openings = Openings::default();
        let peer = request(1).from;
        for packet in 0..3 {
            assert_eq!(openings.wanted_for(peer), packet as usize);
            let mut wishes = openings.take(packet);
            wishes.may_put_off(true);
            assert_eq!(asks(&mut wishes, 1), Some(Err(Error::Later)));
            openings.put_off(packet, wishes);
        }
        assert_eq!(openings.wanted_for([203, 0, 113, 11].into()), 0);
        opens(&mut openings, &Ok(()));
        assert_eq!(openings.wanted_for(peer), 0);
    }

    #[test]
    fn what_it_asks_for_no_more_is_given_back() {
        let mut openings = Openings::default();
        let mut wishes = take(&mut openings);
        assert_eq!(asks(&mut wishes, 1), Some(Err(Error::Later)));
        openings.put_off(7, wishes);
        opens(&mut openings, &Ok(()));
        let mut wishes = take(&mut openings);
        assert_eq!(asks(&mut wishes, 2), Some(Err(Error::Later)));
        assert_eq!(unasked(wishes), [1]);
    }

    /// The pinhole of a `PORT` that waits for the login opens with another packet.
    #[test]
    fn what_it_did_not_reserve_is_not_given_back() {
        let mut openings = Openings::default();
        let mut wishes = take(&mut openings);
        assert_eq!(wishes.open(PinholeId(1)), Some(Err(Error::Later)));
        openings.put_off(7, wishes);
        opens(&mut openings, &Ok(()));
        assert_eq!(unasked(take(&mut openings)), [0; 0]);
    }

    #[test]
    fn what_cannot_be_undone_is_not_put_off() {
        let mut openings = Openings::default();
        assert_eq!(asks(&mut openings.take(7), 1), None, "nobody has asked");
        let mut wishes = openings.take(7);
        assert!(!wishes.may_put_off(false));
        assert_eq!(asks(&mut wishes, 1), None);
        // What it was promised before is given to it all the same.
        let mut wishes = take(&mut openings);
        assert_eq!(asks(&mut wishes, 1), Some(Err(Error::Later)));
        openings.put_off(7, wishes);
        opens(&mut openings, &Ok(()));
        let mut wishes = openings.take(7);
        assert!(!wishes.may_put_off(false));
        assert_eq!(asks(&mut wishes, 1), Some(Ok(())));
    }

    #[test]
    fn the_same_request_twice_is_for_two_pinholes() {
        let mut wishes = Wishes::default();
        let reserved = |id| Reservation {
            id: PinholeId(id),
            to: "198.51.100.1:1".parse().unwrap(),
        };
        for id in [1, 2] {
            assert_eq!(wishes.reserved(&request(1)), None);
            wishes.reserve(&request(1), reserved(id));
        }
        let mut openings = Openings::default();
        openings.put_off(7, wishes);
        let mut wishes = take(&mut openings);
        let again = [(); 3].map(|()| wishes.reserved(&request(1)));
        assert_eq!(again, [Some(reserved(1)), Some(reserved(2)), None]);
    }

    #[test]
    fn a_packet_waits_for_a_bounded_number_of_times() {
        let mut openings = Openings::default();
        for time in 0..u16::MAX {
            let mut wishes = take(&mut openings);
            let asked = asks(&mut wishes, time);
            if asked.is_none() {
                assert_eq!((u32::from(time), wishes.can_wait()), (TIMES, false));
                return;
            }
            openings.put_off(7, wishes);
            opens(&mut openings, &Ok(()));
        }
    }

    #[test]
    fn what_a_packet_tells_before_it_is_put_off_did_not_happen() {
        let told = |wishes: &mut Wishes| {
            wishes.tell(Event::SessionClosed {
                session: SessionId(1),
                how: "FIN",
            });
        };
        let mut openings = Openings::default();
        let mut wishes = take(&mut openings);
        told(&mut wishes);
        openings.put_off(7, wishes);
        let mut wishes = take(&mut openings);
        told(&mut wishes);
        assert_eq!(wishes.settle().0.len(), 1);
    }
}

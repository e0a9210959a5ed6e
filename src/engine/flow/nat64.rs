//! Announcements between an IPv6-only client and an IPv4-only server:
//! [`announce::nat64`] decides, and here it is carried out.

use std::net::{Ipv4Addr, SocketAddr};

use super::announcement::Went;
use super::dialogue::pending;
use super::{Context, Flow};
use crate::engine::Side;
use crate::engine::announce::Declined;
use crate::engine::announce::How;
use crate::engine::announce::nat64::{Asked, Translated};
use crate::engine::endpoints::Endpoints;
use crate::ftp::Mode;
use crate::ftp::fit::{LineSlot, Rewrite};
use crate::ftp::nat64::{Nat64, Nat64News, extended_reply, port_command, refused_reply};
use crate::ftp::session::{Address, Form, Outcome};

impl Flow {
    /// The server is behind a translator. `speaks_epsv`: it is known to answer `EPSV`.
    pub(in crate::engine) fn translate(&mut self, server: Ipv4Addr, speaks_epsv: bool) {
        // No segment of one that is signed can be changed.
        if !self.is_signed() {
            self.session.translate(Nat64::new(server, speaks_epsv));
        }
    }

    /// Takes what happened, if it is translated: the server's address and the news.
    pub(in crate::engine) fn nat64_news(&mut self) -> Option<(Ipv4Addr, Nat64News)> {
        let nat64 = self.session.nat64_mut()?;
        Some((nat64.server(), nat64.take_news()))
    }

    /// Handles an announcement in a session that is translated; `nat64` is how it stands.
    pub(super) fn announce_translated(
        &mut self,
        mut nat64: Nat64,
        ends: &Endpoints,
        side: Side,
        address: &Address,
        (how, open): (Result<How, Declined>, bool),
        cx: &mut Context<'_>,
    ) {
        let said = &address.announcement;
        let decided = how.and_then(|how| {
            let asked = Asked {
                config: cx.config,
                session: self.id,
                ends,
                side,
                said,
                len: address.len,
                is_translated: address.translated_from.is_some(),
                how,
            };
            match said.mode {
                Mode::Passive => asked.passive(&mut nat64, cx.gateway).map(Some),
                Mode::Active => asked.active(&mut nat64, cx.gateway),
            }
        });
        if let (Some(client), Some(own)) = (nat64.translated(), self.session.nat64_mut()) {
            own.is_translated_to(client);
        }
        let named = SocketAddr::new(said.addr.unwrap_or(ends.of_side(side).ip()), said.port);
        match decided {
            Ok(Some(translated)) => {
                self.goes_out(side, address, (named, nat64.server()), translated, open, cx);
            }
            Ok(None) => self.leave(side, address, cx),
            Err(declined) => {
                let (why, replaced) = match declined {
                    Declined::Wait => {
                        self.freeze();
                        return;
                    }
                    Declined::PutOff => return self.put_off(cx),
                    Declined::Leave(why) => (why, self.leave_untranslated(side, address, cx)),
                    Declined::Refuse(why) => (why, self.refuse_translated(side, address, cx)),
                };
                self.count_refusal(said.verb, why, Some(named), replaced, cx);
            }
        }
    }

    /// The announcement goes out as its receiver understands it.
    fn goes_out(
        &mut self,
        side: Side,
        address: &Address,
        (old, server): (SocketAddr, Ipv4Addr),
        translated: Translated,
        open: bool,
        cx: &mut Context<'_>,
    ) {
        let Translated {
            new,
            from,
            land,
            hole,
            why,
        } = translated;
        let (at, len, text) = self.text(side, address, new, server);
        let forward = self.forward(side);
        let is_same = forward.pending().get(at..at.saturating_add(len)) == Some(text.as_slice());
        forward.pass(at);
        forward.replace(len.max(1), &text);
        let said = &address.announcement;
        let Some(pinhole) = hole else {
            self.tell_session(side, Outcome::PassedUnmodified, cx);
            if let Some(why) = why {
                self.count_refusal(said.verb, why, Some(old), false, cx);
            }
            return;
        };
        let went = Went {
            pinhole,
            open,
            rewritten: (!is_same).then_some(len != text.len()),
            old,
            new,
            from,
            land,
        };
        self.is_announced(side, said, went, cx);
    }

    /// What replaces how many pending bytes, and where: with the port of `new`.
    fn text(
        &self,
        side: Side,
        address: &Address,
        new: SocketAddr,
        server: Ipv4Addr,
    ) -> (usize, usize, Vec<u8>) {
        let said = &address.announcement;
        let translated = address
            .translated_from
            .map(|start| self.slot(side, address, start));
        match (said.mode, said.form, translated) {
            (Mode::Passive, _, Some((start, len))) => (start, len, extended_reply(new.port(), len)),
            (Mode::Active, _, Some((start, len))) => {
                (start, len, port_command(new).unwrap_or_default())
            }
            // Of a client that has a translator of its own (464XLAT, RFC 6384 §10): it uses IPv4.
            (Mode::Passive, Form::HostPort, None) => {
                let public = SocketAddr::new(server.into(), new.port());
                self.in_slot(side, address, public)
            }
            (_, _, None) => self.in_slot(side, address, new),
        }
    }

    /// The same in a line that keeps its form.
    fn in_slot(
        &self,
        side: Side,
        address: &Address,
        public: SocketAddr,
    ) -> (usize, usize, Vec<u8>) {
        let pending = pending(&self.halves, side);
        let before = pending.get(..address.at).unwrap_or_default();
        let end = address.at.saturating_add(address.len);
        let after = pending.get(end..).unwrap_or_default();
        let slot = LineSlot::new(&address.announcement, address.len, before, after);
        let Rewrite {
            before,
            after,
            text,
        } = slot.rewrite(public);
        let len = address.len.saturating_add(before).saturating_add(after);
        (address.at.saturating_sub(before), len, text)
    }

    /// The part of a line that is translated: from its verb or code up to the end of its address, and of
    /// what closes that.
    fn slot(&self, side: Side, address: &Address, start: usize) -> (usize, usize) {
        let mut end = address.at.saturating_add(address.len);
        let reply = address.announcement.mode == Mode::Passive;
        if reply && pending(&self.halves, side).get(end) == Some(&b')') {
            end = end.saturating_add(1);
        }
        (start, end.saturating_sub(start))
    }

    /// No pinhole can be made for it. A client that has asked by `EPSV` is told so, since it can't read
    /// a `227`; else it goes out as it is. Returns whether it was replaced.
    fn leave_untranslated(&mut self, side: Side, address: &Address, cx: &mut Context<'_>) -> bool {
        match (address.announcement.mode, address.translated_from) {
            (Mode::Passive, Some(_)) => self.refuse_translated(side, address, cx),
            _ => {
                self.leave(side, address, cx);
                false
            }
        }
    }

    /// Refuses it in place; false if it can't be, and went out as it is.
    fn refuse_translated(&mut self, side: Side, address: &Address, cx: &mut Context<'_>) -> bool {
        let start = match (address.announcement.mode, address.translated_from) {
            (Mode::Passive, Some(start)) if self.session.begins_reply() => start,
            _ => return self.refuse(side, address, cx),
        };
        let (start, len) = self.slot(side, address, start);
        let forward = self.forward(side);
        forward.pass(start);
        forward.replace(len.max(1), &refused_reply(len));
        self.tell_session(side, Outcome::Refused, cx);
        true
    }
}

//! What a flow leaves to whoever goes on with it after this process: its mark and its record. See
//! [`joining`](crate::engine::joining).

use super::range::Range;
use super::{Context, End, Flow, Joined, RESUMED};
use crate::engine::Side;
use crate::engine::config::{Config, Standing};
use crate::engine::endpoints::Endpoints;
use crate::engine::gateway::Gateway;
use crate::engine::names::Names;
use crate::engine::record::{self, State};
use crate::engine::second::Second;
use crate::ftp::session::Session;
use crate::stream::Half;
use crate::wire::Segment;

impl Flow {
    /// Says in the connection's mark what its numbers are like, and keeps a record of what the mark
    /// can't say. To be called before a packet goes on that changed the flow.
    ///
    /// At any moment in between, mark and record together must tell the truth. So the record comes
    /// before the mark that asks for it, and goes after the mark that makes it needless.
    pub(in crate::engine) fn leave_word(
        &mut self,
        ends: &Endpoints,
        names: &Names,
        cx: &mut Context<'_>,
    ) {
        let over = matches!(self.end, End::Dismissed | End::Frozen);
        let Some(standing) = self.numbers(cx.config).filter(|_| !over) else {
            return;
        };
        let state = match standing {
            Standing::Uneven => Some(State::Exact(&*self)),
            _ if self.range != Range::None && !self.is_closed() => Some(State::Tls {
                client: self.client,
            }),
            // Who hasn't seen the question would take its reply for another one's.
            _ if self.is_read() && self.session.awaits_translation() => Some(State::Exact(&*self)),
            // Until the mark says something else.
            _ if self.recorded && standing != self.standing => Some(State::Exact(&*self)),
            _ => None,
        };
        let needed = state.is_some();
        if let Some(state) = state {
            self.recorded = record::keep(ends, names.of_flow(ends), state, cx);
        }
        if standing != self.standing {
            let (inside, outside) = (ends.inside(), ends.outside());
            let told = cx.gateway.mark(inside, outside, standing);
            if told.is_err() {
                cx.stats.mark_errors = cx.stats.mark_errors.saturating_add(1);
            }
            // Whoever can't join it loses nothing but that, so it is tried once.
            if told.is_ok() || self.standing == Standing::Unfollowed {
                self.standing = standing;
            }
        }
        if !needed {
            self.take_word_back(ends, cx.gateway);
        }
    }

    /// Whether a record of it is kept.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// Drops the record.
    pub(in crate::engine) fn take_word_back(
        &mut self,
        ends: &Endpoints,
        gateway: &mut dyn Gateway,
    ) {
        if self.recorded {
            gateway.drop_record(ends.outward());
            self.recorded = false;
        }
    }

    /// What its mark is to say. `None`: nothing.
    fn numbers(&self, config: &Config) -> Option<Standing> {
        config.marks?;
        Some(match self.is_even() {
            false => Standing::Uneven,
            true if self.is_read() && !self.is_closed() => Standing::Even,
            true => Standing::Unfollowed,
        })
    }

    /// Goes on with a connection whose exact state was recorded.
    pub(in crate::engine) fn resume(&mut self, joined: &Joined, config: &Config, now: Second) {
        self.id = joined.id;
        self.set_admitted(joined.admitted);
        self.opened = now;
        self.seen = now;
        for (since, half) in self.waiting.iter_mut().zip(&self.halves) {
            *since = (!half.pending().is_empty()).then_some(now);
        }
        self.session.resume(config.policy.clone());
        self.joined |= RESUMED;
        self.recorded = true;
    }

    /// Whether a segment goes on where this ends.
    pub(in crate::engine) fn goes_on_with(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        !self.is_closed() && self.believes(side, segment)
    }

    /// What was [joined](Self::joined) went on under TLS, with a range.
    pub(in crate::engine) fn is_under_tls(&mut self, config: &Config) {
        self.session = Session::joined_under_tls(config.policy.clone());
        self.halves.iter_mut().for_each(Half::end_inspection);
        self.range = Range::Open;
        self.standing = Standing::Unfollowed;
        self.recorded = true;
    }

    /// Notes what its mark says.
    pub(in crate::engine) fn is_marked(&mut self, standing: Standing) {
        self.standing = standing;
    }
}

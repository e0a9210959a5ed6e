//! Implicit FTPS: TLS from the first byte, on a port that is known for it.

use super::{Over, Peer, Reading, Session, Step, Unanswered};

impl Session {
    /// The session begins with TLS, not with the server's greeting.
    ///
    /// If it begins in another way, it passes uninspected (`not TLS`).
    pub fn expect_tls(&mut self) {
        self.reading = Reading::TlsExpected;
    }

    /// Both streams are in clear text again (RFC 4217 §12.3). Nothing is known of the commands
    /// under TLS, but the client has logged in: `CCC` is allowed only then.
    pub fn clear_again(&mut self) {
        self.reading = Reading::Clear;
        self.client.end();
        self.server.end();
        self.waiting = Unanswered::default();
        self.multi = None;
        self.other_end = None;
        self.told = None;
        self.drop_active();
        self.greeted = true;
        self.spoken.ftp();
        self.logged_in = true;
        self.epsv_all = false;
    }

    /// Looks at the beginnings of the two streams. It is TLS once the server has answered the
    /// client's handshake record with one of its own.
    pub(super) fn next_record(&mut self, from: Peer, pending: &[u8]) -> Step {
        match (from, self.reading) {
            (Peer::Client, Reading::TlsHello) => {}
            (Peer::Client, _) if is_handshake(pending) => self.reading = Reading::TlsHello,
            (Peer::Server, Reading::TlsHello) if is_handshake(pending) => {
                return self.ends(Over::Tls);
            }
            _ => return self.ends(Over::NotTls),
        }
        Step::Pass(pending.len())
    }
}

/// Whether a stream begins with a TLS handshake record (RFC 8446 §5.1), as far as it is there.
fn is_handshake(start: &[u8]) -> bool {
    start.first() == Some(&22) && start.get(1).is_none_or(|major| *major == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let mut session = Session::new(Default::default());
        session.expect_tls();
        session
    }

    const HELLO: &[u8] = &[22, 3, 1, 0, 5, 1];

    #[test]
    fn two_handshake_records_are_tls() {
        for cut in 1..HELLO.len() {
            let mut session = session();
            assert_eq!(session.next(Peer::Client, &HELLO[..cut]), Step::Pass(cut));
            let rest = Step::Pass(HELLO.len() - cut);
            assert_eq!(session.next(Peer::Client, &HELLO[cut..]), rest);
            let answer = session.next(Peer::Server, &HELLO[..cut]);
            assert_eq!(answer, Step::Opaque(Over::Tls));
            assert_eq!(session.state(), "tls");
        }
    }

    #[test]
    fn anything_else_is_not() {
        let not = Step::Opaque(Over::NotTls);
        assert_eq!(session().next(Peer::Client, b"USER a\r\n"), not);
        assert_eq!(session().next(Peer::Server, b"220 hi\r\n"), not);
        assert_eq!(session().next(Peer::Server, HELLO), not, "unasked");
        let mut session = session();
        session.next(Peer::Client, HELLO);
        // An alert: the server doesn't want to.
        assert_eq!(session.next(Peer::Server, &[21, 3, 1, 0, 2]), not);
        assert_eq!(session.state(), "not tls");
    }
}

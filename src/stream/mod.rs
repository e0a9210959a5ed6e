//! TCP stream editing: sequence numbers, edits and one direction of an edited stream. No FTP.

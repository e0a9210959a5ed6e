//! nf_tables' tables and chains, asked over netlink.

use std::io;

use super::host::TableStore;
use crate::firewall::tables;
use crate::firewall::xtables::Family;

/// The kernel's own tables, of the calling thread's network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelTables;

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

impl TableStore for KernelTables {
    fn tables(&mut self, family: Family) -> io::Result<Vec<(String, u64)>> {
        let mut all = tables::tables()?;
        all.retain(|t| t.family == number(family));
        Ok(all.into_iter().map(|t| (t.name, t.handle)).collect())
    }

    fn chains(&mut self, family: Family, table: &str) -> io::Result<Vec<(String, u64)>> {
        let mut all = tables::chains()?;
        all.retain(|c| c.family == number(family) && c.table == table);
        Ok(all.into_iter().map(|c| (c.name, c.handle)).collect())
    }

    fn delete_chain(&mut self, family: Family, table: &str, chain: &str) -> io::Result<()> {
        tables::delete_chain(number(family), table, chain)
    }

    fn delete_table(&mut self, family: Family, table: &str) -> io::Result<()> {
        tables::delete_table(number(family), table)
    }
}

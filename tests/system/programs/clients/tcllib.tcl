#!/usr/bin/tclsh
# program: tclsh dtplite
# package: tcl tcllib
# verbs: PASV PORT
package require ftp
set ::ftp::VERBOSE 1
set mode [expr {$env(VERB) eq "PASV" ? "passive" : "active"}]
proc must {result} { if {$result in {-1 0 ""}} { exit 1 } }
set ftp [::ftp::Open $env(HOST) $env(LOGIN) $env(PASSWORD) -port $env(PORT) -mode $mode \
    -timeout $env(PATIENCE)]
must [expr {$ftp + 1}]
::ftp::Type $ftp binary
set listing [open listing w]
puts $listing [join [::ftp::List $ftp] \n]
close $listing
must [::ftp::Get $ftp small.bin small.bin]
must [::ftp::Get $ftp second.bin second.bin]
must [::ftp::Put $ftp $env(UPLOAD) $env(TARGET)]
::ftp::Close $ftp

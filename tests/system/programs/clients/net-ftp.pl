#!/usr/bin/perl
# program: perl corelist
# package: perl
# verbs: PASV PORT
use strict;
use warnings;
use Net::FTP;
my $ftp = Net::FTP->new(
    $ENV{HOST}, Port => $ENV{PORT}, Timeout => $ENV{PATIENCE}, Debug => 1,
    Passive => $ENV{VERB} eq "PASV" ? 1 : 0
) or die $@;
$ftp->login($ENV{LOGIN}, $ENV{PASSWORD}) or die $ftp->message;
$ftp->binary;
open my $listing, ">", "listing" or die;
print $listing "$_\n" for $ftp->dir;
close $listing;
$ftp->get($_) or die $ftp->message for "small.bin", "second.bin";
$ftp->put($ENV{UPLOAD}, $ENV{TARGET}) or die $ftp->message;
$ftp->quit;

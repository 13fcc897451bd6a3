package main

import "syscall"

// childAttr keeps a terminal's ctrl-C from a child, which the bench ends
// itself, and has the kernel end the child should the bench die without a word.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// unprivileged is childAttr with another user's rights.
func unprivileged(uid, gid uint32) *syscall.SysProcAttr {
	attr := childAttr()
	attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	return attr
}

// settle waits until the disk has what was written before.
func settle() { syscall.Sync() }

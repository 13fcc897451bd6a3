//go:build unix && !linux

package main

import "syscall"

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func unprivileged(uid, gid uint32) *syscall.SysProcAttr {
	attr := childAttr()
	attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	return attr
}

func settle() {}

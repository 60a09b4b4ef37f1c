"""What contained processes may ask of the kernel, in groups, each with its reason.

Two profiles. `kars-strict` allows exactly ALLOWED and refuses the rest; `RuntimeDefault` refuses exactly
DENIED and allows the rest. Calls in FILTERED are decided by their arguments in both. Data only;
`compiling` gives it teeth.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """System calls that stand or fall together, and why."""

    reason: str
    calls: frozenset[str]


def _group(reason: str, calls: str) -> Group:
    return Group(reason, frozenset(calls.split()))


STEERING = {
    "prlimit64": 0,
    "setpriority": 1,
    "sched_setscheduler": 0,
    "sched_setattr": 0,
    "sched_setparam": 0,
}
"""Calls that steer a process, with the place of its id: not PID 1, which keeps the accounts of the others."""

FILTERED = frozenset({"clone", "clone3", "socket", "ioctl", "prctl", *STEERING})
"""Decided by argument: new namespaces, address families, terminal injection, hiding from the watchdog."""

ALLOWED = (
    _group(
        "run, stop and wait for one's own processes",
        """
        execve execveat exit exit_group fork vfork wait4 waitid kill tkill tgkill pidfd_open
        pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
        rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait sigaltstack signalfd signalfd4
        pause alarm restart_syscall set_tid_address set_robust_list get_robust_list rseq membarrier
        arch_prctl
        """,
    ),
    _group(
        "know oneself and the machine's shape",
        """
        getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid getpgid
        getpgrp getsid setpgid setsid getpriority getrlimit setrlimit
        getrusage capget uname sysinfo times time getcpu umask getrandom
        """,
    ),
    _group(
        "memory of one's own",
        """
        brk mmap munmap mprotect mremap madvise msync mincore mlock mlock2 munlock pkey_alloc
        pkey_free pkey_mprotect
        """,
    ),
    _group(
        "files, as far as mounts, permissions and Landlock let them",
        """
        open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv
        pwritev preadv2 pwritev2 lseek sendfile splice tee copy_file_range fallocate fadvise64
        readahead truncate ftruncate fsync fdatasync sync syncfs sync_file_range flock fcntl dup
        dup2 dup3 pipe pipe2 stat fstat lstat newfstatat statx statfs fstatfs access faccessat
        faccessat2 getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir link linkat symlink
        symlinkat readlink readlinkat unlink unlinkat rename renameat renameat2 chmod fchmod
        fchmodat fchmodat2 chown lchown fchown fchownat utime utimes utimensat futimesat mknod
        mknodat getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr inotify_init
        inotify_init1 inotify_add_watch inotify_rm_watch
        """,
    ),
    _group(
        "sockets of the families that the argument filter lets be made",
        """
        socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt
        setsockopt sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
        """,
    ),
    _group(
        "wait for events and time",
        """
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
        epoll_pwait2 eventfd eventfd2 futex futex_waitv timerfd_create timerfd_settime
        timerfd_gettime nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday setitimer
        getitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete
        """,
    ),
    _group(
        "scheduling within the limits of the cgroup",
        """
        sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_getparam
        sched_getscheduler sched_get_priority_max sched_get_priority_min
        sched_rr_get_interval
        """,
    ),
    _group(
        "confine oneself further",
        "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
)

DENIED = (
    _group(
        "read, write or steer other processes",
        "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
    ),
    _group(
        "change what is mounted where",
        """
        mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree
        mount_setattr open_tree_attr statmount listmount
        """,
    ),
    _group("make or enter namespaces", "unshare setns"),
    _group(
        "large kernel surfaces with a history of escapes",
        """
        bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register modify_ldt
        vmsplice io_setup io_submit io_destroy io_getevents io_pgetevents io_cancel fanotify_init
        fanotify_mark
        """,
    ),
    _group("kernel keyrings are not namespaced", "keyctl add_key request_key"),
    _group(
        "own the machine",
        """
        init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct
        quotactl quotactl_fd ioperm iopl syslog vhangup settimeofday clock_settime clock_adjtime
        adjtimex sethostname setdomainname nfsservctl _sysctl sysfs ustat uselib create_module
        query_module get_kernel_syms lookup_dcookie personality
        """,
    ),
    _group("open files around the mount namespace", "open_by_handle_at name_to_handle_at"),
    _group("place memory by machine topology", "mbind set_mempolicy get_mempolicy migrate_pages move_pages"),
    _group(
        "memory that no file system limit and no process size shows",
        "memfd_create memfd_secret shmget shmat shmctl semget semop semctl msgget msgsnd msgrcv mq_open",
    ),
)

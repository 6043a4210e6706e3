/* Holds a process's entropy, clock, file times and order of directories: they are the same each time. Preloaded by
 * steady.py into the one that runs componentize-py, which keeps in the component what its interpreter has seen of them.
 *
 * Part of what it calls are functions of the C library, the rest are system calls by instructions of its own. So those
 * are trapped by seccomp and answered by a handler; entropy and the clock, which can be read without any, are replaced
 * by name as well. Nothing is linked: all other names are the process's, whichever C library it has. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#define REGISTER(i) ((const int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8}[i])
#define ARGUMENT(context, i) ((context)->uc_mcontext.gregs[REGISTER(i)])
#define RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#define ARGUMENT(context, i) ((context)->uc_mcontext.regs[i])
#define RESULT(context) ((context)->uc_mcontext.regs[0])
#else
#error "steady.py does not ask for this"
#endif

/* The last argument of the handler's own calls, which none of the trapped ones has: these are let through. */
#define OURS 0x5eed57edL
#define NOW_S 1000000000 /* ahead of the kernel's time since its start, or a wait until then would not wait at all */
#define LISTING_BYTES 65536 /* some 2000 names; a directory of more is given as it comes */
#define LISTINGS 64 /* as many directories are read at once */

struct entry { /* linux_dirent64 */
  uint64_t inode;
  int64_t offset;
  uint16_t size;
  uint8_t type;
  char name[];
};

static int held; /* 1: this process is held */

struct listing { /* of a directory that somebody reads */
  long directory, count, served; /* its descriptor; bytes */
  char entries[LISTING_BYTES];
};
static struct listing listings[LISTINGS];
static int listings_taken;

/* The same bytes at each call, so that it does not matter which thread asks first (splitmix64 of STREAMS_SEED). */
static long fill(uint8_t *to, size_t count) {
  uint64_t state = STREAMS_SEED, word = 0;
  for (size_t i = 0; i < count; i++) {
    if (i % 8 == 0) {
      word = state += 0x9e3779b97f4a7c15u;
      word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
      word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
      word ^= word >> 31;
    }
    to[i] = (uint8_t)(word >> (i % 8 * 8));
  }
  return (long)count;
}

/* The status of a file: kind, mode and size (not a directory's) are its own. */
static long status(long directory, long path, long flags, long mask, struct statx *it) {
  long failed = syscall(SYS_statx, directory, path, flags, mask, it, OURS);
  if (failed) return -errno;
  const struct statx_timestamp never = {0};
  it->stx_atime = it->stx_btime = it->stx_ctime = it->stx_mtime = never;
  it->stx_mask = STATX_BASIC_STATS | STATX_BTIME;
  it->stx_ino = it->stx_nlink = 1;
  it->stx_dev_major = it->stx_dev_minor = 0;
  it->stx_attributes = it->stx_attributes_mask = it->stx_blocks = 0;
  it->stx_blksize = 4096;
  if ((it->stx_mode & S_IFMT) == S_IFDIR) it->stx_size = 0;
  return 0;
}

/* The entry that comes after the one named `last` ("": the first), NULL after all of them. */
static const struct entry *after(const char *last, const char *entries, long count) {
  const struct entry *next = NULL;
  for (long at = 0; at < count; at += ((const struct entry *)(entries + at))->size) {
    const struct entry *each = (const struct entry *)(entries + at);
    if (strcmp(each->name, last) > 0 && (!next || strcmp(each->name, next->name) < 0)) next = each;
  }
  return next;
}

static struct listing *of(long directory) {
  for (int i = 0; i < LISTINGS; i++)
    if (listings[i].count && listings[i].directory == directory) return &listings[i];
  return NULL;
}

/* The listing of a directory that is read from its start, taken whole and sorted; NULL: it is too large. */
static struct listing *begun(long directory) {
  static char unsorted[LISTING_BYTES];
  struct listing *it = of(directory);
  for (int i = 0; !it && i < LISTINGS; i++)
    if (listings[i].served == listings[i].count) it = &listings[i];
  long count = 0, more;
  while ((more = syscall(SYS_getdents64, directory, unsorted + count, LISTING_BYTES - count, 0, 0, OURS)) > 0)
    count += more;
  if (more || !it) {
    if (it) it->count = it->served = 0;
    syscall(SYS_lseek, directory, 0, SEEK_SET);
    return NULL;
  }
  const char *last = "";
  it->directory = directory, it->count = count, it->served = 0;
  for (long at = 0; at < count; at += ((struct entry *)(it->entries + at))->size) {
    const struct entry *next = after(last, unsorted, count);
    memcpy(it->entries + at, next, next->size);
    ((struct entry *)(it->entries + at))->inode = 1;
    last = next->name;
  }
  return it;
}

/* What a directory holds, by name: as much of it as there is room for, what is left at the next calls. */
static long list(long directory, char *to, long room) {
  struct listing *it = syscall(SYS_lseek, directory, 0, SEEK_CUR) ? of(directory) : begun(directory);
  if (!it) {
    long count = syscall(SYS_getdents64, directory, to, room, 0, 0, OURS);
    return count < 0 ? -errno : count;
  }
  long from = it->served;
  while (it->served < it->count) {
    long size = ((struct entry *)(it->entries + it->served))->size;
    if (it->served + size - from > room) break;
    it->served += size;
  }
  if (from == it->served && from < it->count) return -EINVAL;
  memcpy(to, it->entries + from, (size_t)(it->served - from));
  return it->served - from;
}

static long listed(long directory, char *to, long room) {
  while (__atomic_exchange_n(&listings_taken, 1, __ATOMIC_ACQUIRE)) {
  }
  long result = list(directory, to, room);
  __atomic_store_n(&listings_taken, 0, __ATOMIC_RELEASE);
  return result;
}

static void answer(int number, siginfo_t *trap, void *interrupted) {
  (void)number;
  ucontext_t *context = interrupted;
  int kept = errno;
  long first = (long)ARGUMENT(context, 0), second = (long)ARGUMENT(context, 1), third = (long)ARGUMENT(context, 2);
  long result = -ENOSYS;
  if (trap->si_syscall == SYS_getrandom) result = fill((uint8_t *)first, (size_t)second);
  if (trap->si_syscall == SYS_getdents64) result = listed(first, (char *)second, third);
  if (trap->si_syscall == SYS_statx)
    result = status(first, second, third, (long)ARGUMENT(context, 3), (struct statx *)ARGUMENT(context, 4));
  RESULT(context) = result;
  errno = kept;
}

ssize_t getrandom(void *to, size_t count, unsigned flags) {
  return held ? fill(to, count) : syscall(SYS_getrandom, to, count, flags);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!held) return (int)syscall(SYS_clock_gettime, clock, now);
  *now = (struct timespec){.tv_sec = NOW_S};
  return 0;
}

/* Holds this process from now on; 1, or 0 where the system does not allow it. It has one thread yet, and starts no
 * programs: they would keep the trap and lose the handler. */
int streams_hold(void) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 0, 6),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OURS, 4, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getrandom, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_statx, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getdents64, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
  };
  struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
  struct statx here;
  /* Where there is no statx, older calls would be made, which are not held. */
  if (status(AT_FDCWD, (long)".", 0, STATX_BASIC_STATS, &here)) return 0;
  if (sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return 0;
  held = !syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
  return held;
}

//! What becomes of packets after the XDP program has sent them on their way: three small programs
//! on the kernel's tracepoints (include/trace/events/xdp.h), attached only while a policy steers.
//!
//! The tracepoints tell of all XDP programs on the machine; the ids of this instance's maps, which
//! user space fills in, tell them apart.

use aya_ebpf::{
    Global, helpers::bpf_probe_read_kernel, macros::raw_tracepoint, programs::RawTracePointContext,
};
use portsteer_common::steering::TARGET_SLOTS;

use crate::maps;

/// The id of the map `devices`.
#[unsafe(no_mangle)]
static DEVICES_ID: Global<u32> = Global::new(0);

/// The id of the map `cpus`.
#[unsafe(no_mangle)]
static CPUS_ID: Global<u32> = Global::new(0);

/// Where `struct net_device` has its `ifindex`, in bytes.
#[unsafe(no_mangle)]
static IFINDEX_OFFSET: Global<u32> = Global::new(0);

/// Where `struct net_device` has the address of its network namespace, in bytes.
#[unsafe(no_mangle)]
static NETWORK_OFFSET: Global<u32> = Global::new(0);

/// Where `struct net` has its inode's number, in bytes.
#[unsafe(no_mangle)]
static INODE_OFFSET: Global<u32> = Global::new(0);

/// The inode's number of the network namespace that the targets' interfaces are in.
#[unsafe(no_mangle)]
static NETWORK: Global<u32> = Global::new(0);

/// A device takes a batch of frames, or does not take some. Arguments: device that they came from,
/// device that they go to, taken, dropped, error.
///
/// There is no map's id here, so this knows its own by the device: its index, and the network
/// namespace that the index is of.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
pub fn watch_sent(ctx: RawTracePointContext) -> i32 {
    let (device, dropped, error): (u64, u32, i32) = (ctx.arg(1), ctx.arg(3), ctx.arg(4));
    if dropped == 0 {
        return 0;
    }
    let Some(ifindex) = read(device, IFINDEX_OFFSET.load()) else { return 0 };
    let Some(network) = read(device, NETWORK_OFFSET.load()) else { return 0 };
    let inode: Option<u32> = read(network, INODE_OFFSET.load());
    if inode != Some(NETWORK.load()) {
        return 0;
    }
    if let Some(slot) = maps::slot_of_device(ifindex) {
        maps::lose_at(slot, |losses| {
            losses.device += u64::from(dropped);
            if error < 0 {
                losses.unable += u64::from(dropped);
            }
        });
    }
    0
}

/// A member of one of the kernel's structures, `offset` bytes into it.
#[inline(always)]
fn read<T>(structure: u64, offset: u32) -> Option<T> {
    let address = structure + u64::from(offset);
    // SAFETY: the helper checks the address itself, and the members that are read are numbers and
    // addresses, for which all bits are valid.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// The kernel refuses a redirect: the interface is down or gone, the frame too long, or its kind not
/// taken. Arguments: device, program, target, error, map type, map id, index in the map.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn watch_refused(ctx: RawTracePointContext) -> i32 {
    let (map, index): (u32, u32) = (ctx.arg(5), ctx.arg(6));
    let entry = if map == DEVICES_ID.load() {
        index
    } else if map == CPUS_ID.load() {
        TARGET_SLOTS as u32 + index
    } else {
        return 0;
    };
    maps::lose_at(entry, |losses| losses.refused += 1);
    0
}

/// A CPU's queue takes a batch of packets, or has no room for some. Arguments: map id, taken,
/// dropped, CPU.
#[raw_tracepoint(tracepoint = "xdp_cpumap_enqueue")]
pub fn watch_queued(ctx: RawTracePointContext) -> i32 {
    let (map, dropped, cpu): (u32, u32, u32) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    if dropped > 0 && map == CPUS_ID.load() {
        maps::lose_at(TARGET_SLOTS as u32 + cpu, |losses| losses.queue += u64::from(dropped));
    }
    0
}

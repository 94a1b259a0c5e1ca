//! Sockets that tell CPUs apart.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
};

use super::sys;

/// UDP sockets that share the address: one for what each of the CPUs takes in, in the order of
/// `cpus`, and a last one for what all other CPUs take in.
///
/// (`SO_INCOMING_CPU` would say it of one socket, but only of a connected one.)
///
/// # Errors
///
/// If the kernel refuses, and for more CPUs than a classic BPF program has jumps for, which is some
/// two thousand.
pub fn udp_sockets_by_cpu(address: SocketAddr, cpus: &[u32]) -> io::Result<Vec<UdpSocket>> {
    // In a group of sockets, each has the number that it was bound as.
    let sockets = (0..=cpus.len())
        .map(|_| sys::bind_shared_udp(address))
        .collect::<io::Result<Vec<UdpSocket>>>()?;
    sys::choose_socket_by(sockets[0].as_fd(), &number_of_cpu(cpus))?;
    Ok(sockets)
}

/// A classic BPF program that gives the index in `cpus` of the CPU that it runs on, or the number
/// after the last.
fn number_of_cpu(cpus: &[u32]) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let this_cpu = (libc::SKF_AD_OFF + libc::SKF_AD_CPU).cast_unsigned();
    let answer = |number: usize| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, number as u32);
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, this_cpu)];
    for (number, &cpu) in cpus.iter().enumerate() {
        // The answer, or over it.
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, cpu));
        program.push(answer(number));
    }
    program.push(answer(cpus.len()));
    program
}
